"""FasterTransformer's folders, GPT and T5: config.ini beside a raw .bin file for each tensor, or
for each tensor and rank, cut for one number of tensor ranks.

Names and layouts as its converters write them (examples/pytorch/{gpt,t5}/utils). Every file must be
there with its exact length, and no other: its own loader went on with what was in memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ftjob.checkpoint.forms import Assembly, Form, Fused, Placed, lay, placed_forms
from ftjob.checkpoint.index import CheckpointIndex, Known, check_layers, sampled_bytes, shapes_of
from ftjob.checkpoint.ini import read_ini
from ftjob.checkpoint.ini_models import gpt_config, stored_vocab, t5_config
from ftjob.checkpoint.shard import Shape, place_all
from ftjob.checkpoint.stored import BITS, StoredTensor, shown
from ftjob.errors import CheckpointError
from ftjob.model.families import family

DTYPES = MappingProxyType({"fp32": "F32", "fp16": "F16", "bf16": "BF16"})
CONFIG_NAME = "config.ini"
# The section by which `convert` says that the settings are meant as they stand.
OURS = "ftjob"
_GPU_FOLDER = re.compile(r"(\d{1,4})-gpu")


def _gpt_layer(source: str, stored: str, split: int, fused: Fused | None = None) -> list[Form]:
    """Weight and bias of a linear layer; the bias is cut where the columns are."""
    ours, theirs = f"h.{{layer}}.{source}", f"model.layers.{{layer}}.{stored}"
    weight = Form((f"{ours}.weight",), f"{theirs}.weight.{{rank}}.bin", split, fused=fused)
    if split == 0:
        return [weight, Form((f"{ours}.bias",), f"{theirs}.bias.bin")]
    return [weight, Form((f"{ours}.bias",), f"{theirs}.bias.{{rank}}.bin", 0, fused=fused)]


def _gpt_norm(source: str, stored: str) -> list[Form]:
    return [Form((f"{source}.{p}",), f"model.{stored}.{p}.bin") for p in ("weight", "bias")]


_GPT = (
    Form(("wte.weight",), "model.wte.bin"),
    Form(("wpe.weight",), "model.wpe.bin"),
    Form(("lm_head.weight",), "model.lm_head.weight.bin"),
    *_gpt_norm("ln_f", "final_layernorm"),
    *_gpt_norm("h.{layer}.ln_1", "layers.{layer}.input_layernorm"),
    *_gpt_norm("h.{layer}.ln_2", "layers.{layer}.post_attention_layernorm"),
    *_gpt_layer("attn.c_attn", "attention.query_key_value", split=1, fused="parts"),
    *_gpt_layer("attn.c_proj", "attention.dense", split=0),
    *_gpt_layer("mlp.c_fc", "mlp.dense_h_to_4h", split=1),
    *_gpt_layer("mlp.c_proj", "mlp.dense_4h_to_h", split=0),
)


def _t5_stack(stack: str) -> list[Form]:
    """One stack's layers; the two have the same names but for the decoder's fused q, k and v."""
    block, decoder = f"{stack}.block.{{layer}}.layer", stack == "decoder"

    def linear(name: str, split: int, stored: str | None = None) -> Form:
        return Form(
            (f"{block}.{name}.weight",),
            f"{block}.{stored or name}.weight.{{rank}}.bin",
            split=split,
            turned=True,
        )

    own = [f"{block}.0.SelfAttention.{p}.weight" for p in "qkv"]
    fused = f"{block}.0.SelfAttention.qkv.weight.{{rank}}.bin"
    mlp = f"{2 if decoder else 1}.DenseReluDense"
    table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return [
        Form((table,), f"{table}.{{rank}}.bin", split=1, turned=True),
        *(
            [Form(tuple(own), fused, split=0, turned=True, fused="parts")]
            if decoder
            else [linear(f"0.SelfAttention.{p}", 0) for p in "qkv"]
        ),
        linear("0.SelfAttention.o", 1),
        *([linear(f"1.EncDecAttention.{p}", 0) for p in "qkv"] if decoder else []),
        *([linear("1.EncDecAttention.o", 1)] if decoder else []),
        linear(f"{mlp}.wi", 0),
        linear(f"{mlp}.wi_0", 0, f"{mlp}.wi"),
        linear(f"{mlp}.wi_1", 0, f"{mlp}.wi2"),
        linear(f"{mlp}.wo", 1),
        *(
            Form((f"{block}.{n}.layer_norm.weight",), f"{block}.{n}.layer_norm.weight.bin")
            for n in range(3 if decoder else 2)
        ),
        Form((f"{stack}.final_layer_norm.weight",), f"{stack}.final_layer_norm.weight.bin"),
    ]


_T5 = (
    Form(("shared.weight",), "shared.weight_T.bin"),
    Form(("lm_head.weight",), "lm_head.weight.bin"),
    *_t5_stack("encoder"),
    *_t5_stack("decoder"),
)
FORMS: Mapping[str, tuple[Form, ...]] = MappingProxyType({"gpt2": _GPT, "t5": _T5})
# What the T5 converter writes beside: nothing reads the first, and the second is a tied head's.
COPIES: Mapping[str, tuple[Form, ...]] = MappingProxyType(
    {
        "gpt2": (),
        "t5": (
            Form(("shared.weight",), "shared.weight.bin", turned=True),
            Form(("shared.weight",), "lm_head.weight.bin"),
        ),
    }
)
# The two files of the embedding and of a head, which may be a copy of it.
_HEADS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "gpt2": ("model.wte.bin", "model.lm_head.weight.bin"),
        "t5": ("shared.weight_T.bin", "lm_head.weight.bin"),
    }
)


def folder_inside(folder: Path) -> Path | None:
    """The folder with config.ini: this one, or its only N-gpu folder; None where there is none.

    Raises:
        CheckpointError: where there are several.
    """
    if (folder / CONFIG_NAME).is_file():
        return folder
    inside = sorted(
        f for f in folder.iterdir() if _GPU_FOLDER.fullmatch(f.name) and (f / CONFIG_NAME).is_file()
    )
    if len(inside) > 1:
        raise CheckpointError(
            f"{folder}: holds {', '.join(f.name for f in inside)}: name one of them; any runs at "
            "every split"
        )
    return inside[0] if inside else None


def open_fastertransformer(folder: Path, known: Known) -> CheckpointIndex:
    """The index of the folder with config.ini; lengths of files are checked, no weight is read.

    Raises:
        CheckpointError: for a model that computes something else, for settings that disagree with
            the files, and for a missing, short, long or unknown file.
    """
    path = folder / CONFIG_NAME
    sections = read_ini(path)
    if "gpt" in sections:
        config, weights, remarks = gpt_config(sections["gpt"], known, OURS in sections)
        stated = sections["gpt"].size("tensor_para_size", 0, least=0)
    elif "encoder" in sections and "decoder" in sections:
        config, weights, remarks = t5_config(sections)
        stated = 0
    else:
        raise CheckpointError(
            f"{path}: has the sections {shown(', '.join(sections))}; read are GPT's [gpt], and "
            "T5's [encoder] and [decoder]"
        )
    if weights not in DTYPES:
        raise CheckpointError(
            f"{path}: weight_data_type={shown(weights)} is not known; known: {', '.join(DTYPES)}"
        )
    files = {f.name: f.stat().st_size for f in folder.iterdir() if f.suffix == ".bin"}
    _refuse_prompts(folder, files)
    name = "gpt2" if config["model_type"] == "gpt2" else "t5"
    ways = _ways(folder, files, stated)
    unused = _tied_head(folder, name, files)
    own_head = not unused and _HEADS[name][1] in files
    if own_head and name == "gpt2":
        config["tie_word_embeddings"] = False
    kind = family(name)
    try:
        arch = kind.read_config(config, ("lm_head.weight",) if own_head else ())
    except KeyError as error:
        raise CheckpointError(f"{path}: {error} is missing") from None
    check_layers(arch.layers + arch.encoder_layers, len(files), path)
    shapes = shapes_of(place_all(kind.tensors(arch), arch.layers, arch.encoder_layers))
    vocab = stored_vocab(sections)
    reader = _Files(folder, DTYPES[weights], files)
    assembly = Assembly(shapes)
    for placed in placed_forms(FORMS[name], shapes):
        for rank in range(ways if placed.ranked else 1):
            _check_cut(path, placed, arch.heads, ways)
            laid = lay(placed.form, placed.shape, rank, ways, arch.heads)
            shape = (vocab, *laid.shape[1:]) if _holds_vocab(placed.sources[0]) else laid.shape
            assembly.add(placed, laid, reader.stored(placed.name(rank), shape))
    for copy in placed_forms(COPIES[name], shapes):
        if copy.stored in files and copy.stored not in reader.used:
            reader.stored(copy.stored, (vocab, arch.hidden))
            unused = tuple({*unused, copy.stored})
    reader.refuse_others(unused)
    return CheckpointIndex(
        folder,
        config,
        assembly.tensors(),
        f"FasterTransformer, {ways}-gpu, {weights}",
        path,
        tuple(sorted(unused)),
        remarks,
    )


def _holds_vocab(source: str) -> bool:
    return source in ("wte.weight", "shared.weight", "lm_head.weight")


def _refuse_prompts(folder: Path, files: Mapping[str, int]) -> None:
    for file in sorted(files):
        if ".prompt_table." in file or ".prefix_prompt." in file or ".ia3." in file:
            raise CheckpointError(
                f"{folder / file}: prompt tables and IA3 are not read: the model would answer "
                "without them. Take them out of the folder to run the model itself."
            )


def _ways(folder: Path, files: Mapping[str, int], stated: int) -> int:
    """For how many ranks the tensors are cut: what config.ini, the folder's name and the files
    say alike."""
    ranks = [int(m[1]) for f in files if (m := re.search(r"\.(\d{1,4})\.bin$", f))]
    found = max(ranks, default=-1) + 1
    if not found:
        raise CheckpointError(f"{folder}: holds no file of a tensor rank, such as *.weight.0.bin")
    named = _GPU_FOLDER.fullmatch(folder.name)
    for says, number in (
        (f"{CONFIG_NAME} says tensor_para_size={stated}", stated),
        (f"its name says {folder.name}", int(named[1]) if named else 0),
    ):
        if number not in (0, found):
            raise CheckpointError(f"{folder}: {says}, but its files are those of {found} ranks")
    return found


def _tied_head(folder: Path, name: str, files: Mapping[str, int]) -> tuple[str, ...]:
    """The head's file where it is a copy of the embedding's, as converters write for tied ones,
    judged by a sample of both files' bytes."""
    table, head = _HEADS[name]
    if head not in files:
        return ()
    same = files[head] == files.get(table) and sampled_bytes(folder / head) == sampled_bytes(
        folder / table
    )
    return (head,) if same else ()


def _check_cut(path: Path, placed: Placed, heads: int, ways: int) -> None:
    """Heads and columns must divide: a rank holds whole heads."""
    split = placed.form.split
    if split is not None and (heads % ways or placed.shape[split] % ways):
        raise CheckpointError(
            f"{path}: {heads} heads and {placed.sources[0]} {list(placed.shape)} cannot be cut "
            f"into the {ways} parts that the files have"
        )


class _Files:
    """The .bin files of a folder, each to be asked for once, with the length it must have."""

    def __init__(self, folder: Path, dtype: str, sizes: Mapping[str, int]) -> None:
        self.folder, self.dtype, self.sizes = folder, dtype, sizes
        self.used: set[str] = set()

    def stored(self, name: str, shape: Shape) -> StoredTensor:
        """The file as a tensor.

        Raises:
            CheckpointError: where it is missing or has another length.
        """
        expected = math.prod(shape) * BITS[self.dtype] // 8
        if name not in self.sizes:
            raise CheckpointError(
                f"{self.folder / name}: is missing; expected {expected} bytes, {self.dtype} "
                f"{list(shape)}"
            )
        if self.sizes[name] != expected:
            other = [
                word
                for word, dtype in DTYPES.items()
                if self.sizes[name] * BITS[self.dtype] == expected * BITS[dtype]
            ]
            hint = f"; as many as {' or '.join(other)} would have" if other else ""
            raise CheckpointError(
                f"{self.folder / name}: expected {expected} bytes, {self.dtype} {list(shape)}, "
                f"found {self.sizes[name]}{hint}"
            )
        self.used.add(name)
        return StoredTensor(self.folder / name, name, shape, self.dtype)

    def refuse_others(self, unused: Sequence[str]) -> None:
        """Refuse files that belong to no tensor."""
        if others := sorted(self.sizes.keys() - self.used - set(unused)):
            raise CheckpointError(
                f"{self.folder / others[0]}: {self.sizes[others[0]]} bytes belong to no part of "
                f"the model that {CONFIG_NAME} describes"
            )
