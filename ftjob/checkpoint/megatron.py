"""Megatron-LM's GPT checkpoints: a model_optim_rng.pt for each tensor and pipeline rank, names and
layouts mapped to transformers'.

Versions 0, 1.0, 2.0 and 3.0 differ in names and in the order of the rows of q, k and v; rows that
pad the vocabulary are in no piece. `megatron_files` finds the files, `megatron_args` reads their
settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ftjob.checkpoint.forms import Assembly, Form, Fused, Placed, lay, placed_forms
from ftjob.checkpoint.index import CheckpointIndex, Known, shapes_of
from ftjob.checkpoint.megatron_args import gpt_config, read_args
from ftjob.checkpoint.megatron_files import LAYER, RankFile, model_of, rank_files, version_of
from ftjob.checkpoint.shard import place_all
from ftjob.checkpoint.stored import shown
from ftjob.checkpoint.torchfile import View, read_torch_file
from ftjob.errors import CheckpointError
from ftjob.model.families import family

# Rows of q, k and v by checkpoint version: Megatron-LM, fix_query_key_value_ordering.
ORDERS: Mapping[int, Fused] = MappingProxyType({0: "parts", 1: "elements", 2: "heads", 3: "heads"})
EMBEDDING, HEAD = "embedding.word_embeddings.weight", "output_layer.weight"
# Tensors of a row a word, whose padding makes them divide.
PADDED = ("wte.weight", "lm_head.weight")
_HEAD_COPY = "word_embeddings_for_head.weight"
# The optimizer of Megatron's first versions saved an object, of a module that moved twice since;
# Megatron-LM's load_checkpoint still lists the old places.
LOSS_SCALERS = frozenset(
    f"{module}.loss_scaler.{kind}"
    for module in ("fp16", "megatron.fp16", "megatron.fp16_deprecated")
    for kind in ("LossScaler", "DynamicLossScaler")
)


def gpt_forms(version: int) -> tuple[Form, ...]:
    """How a version stores a GPT, by the names of the newest: {rank} is the tensor rank."""
    theirs = "encoder.layers.{layer}"

    def linear(source: str, stored: str, split: int, fused: Fused | None = None) -> list[Form]:
        ours = f"h.{{layer}}.{source}"
        bias = 0 if split else None
        return [
            Form((f"{ours}.weight",), f"{theirs}.{stored}.weight", split, True, fused),
            Form((f"{ours}.bias",), f"{theirs}.{stored}.bias", bias, False, fused),
        ]

    def norm(source: str, stored: str) -> list[Form]:
        return [Form((f"{source}.{part}",), f"{stored}.{part}") for part in ("weight", "bias")]

    order = ORDERS[version]
    return (
        Form(("wte.weight",), EMBEDDING, 0),
        Form(("wpe.weight",), "embedding.position_embeddings.weight"),
        Form(("lm_head.weight",), HEAD, 0),
        *norm("h.{layer}.ln_1", f"{theirs}.input_layernorm"),
        *linear("attn.c_attn", "self_attention.query_key_value", 1, order),
        *linear("attn.c_proj", "self_attention.dense", 0),
        *norm("h.{layer}.ln_2", f"{theirs}.post_attention_layernorm"),
        *linear("mlp.c_fc", "mlp.dense_h_to_4h", 1),
        *linear("mlp.c_proj", "mlp.dense_4h_to_h", 0),
        *norm("ln_f", "encoder.final_layernorm"),
    )


def open_megatron(folder: Path, home: Path, known: Known) -> CheckpointIndex:
    """The index of the folder with the ranks' folders; `home` is the one the user named. Trees are
    read, no weight.

    Raises:
        CheckpointError: for a model that computes something else, for ranks that do not belong
            together, and for a missing, odd-shaped or unknown tensor.
    """
    files = rank_files(folder)
    ways, stages = (1 + max(place[i] for place in files) for i in (0, 1))
    opened = {place: read_torch_file(file) for place, file in files.items()}
    first = opened[0, 0]
    for each in opened.values():
        each.refuse_stubs(lambda key: key == "args" or "rng" in key, LOSS_SCALERS)
    version = version_of(opened, ORDERS)
    args = read_args(first)
    trees = {place: model_of(each) for place, each in opened.items()}
    layers, before = _layers(trees, files, stages)
    ranks = {
        place: RankFile(opened[place].file, opened[place], _renumbered(tree, before[place[1]]))
        for place, tree in trees.items()
    }
    rows = _rows(ranks, ways)
    config, remarks = gpt_config(args, first.file, _sizes(ranks, layers, rows), known)
    if HEAD in ranks[0, stages - 1].tensors:
        config["tie_word_embeddings"] = False
    arch = family("gpt2").read_config(config, ())
    shapes = shapes_of(place_all(family("gpt2").tensors(arch), arch.layers, 0))
    assembly, used = Assembly(shapes), {place: set[str]() for place in ranks}
    stage_of = [s for s, n in enumerate(before) for _ in range(n, [*before, layers][s + 1])]
    for placed in placed_forms(gpt_forms(version), shapes):
        stage = _stage(placed, stage_of)
        padded = rows if placed.sources[0] in PADDED else None
        for rank in range(ways):
            _check_cut(first.file, placed, arch.heads, ways)
            laid = lay(placed.form, placed.shape, rank, ways, arch.heads, padded)
            stored = ranks[rank, stage].stored(placed.stored, laid, len(placed.shape))
            used[rank, stage].add(placed.stored)
            if rank == 0 or placed.form.split is not None:
                assembly.add(placed, laid, stored)
    _refuse_others(ranks, used, rows // ways, arch.hidden)
    name = f"Megatron-LM, version {version}, {ways} tensor x {stages} pipeline"
    return CheckpointIndex(home, config, assembly.tensors(), name, first.file, (), remarks)


def _check_cut(file: Path, placed: Placed, heads: int, ways: int) -> None:
    split = placed.form.split
    if heads % ways or (
        split is not None and placed.shape[split] % ways and placed.sources[0] not in PADDED
    ):
        raise CheckpointError(
            f"{file}: {heads} heads and {placed.sources[0]} {list(placed.shape)} cannot be cut "
            f"into the {ways} tensor ranks there are"
        )


def _layers(
    trees: Mapping[tuple[int, int], Mapping[str, View]],
    files: Mapping[tuple[int, int], Path],
    stages: int,
) -> tuple[int, list[int]]:
    """The number of layers, and how many come before each pipeline stage."""
    before, total = [], 0
    for stage in range(stages):
        numbers = {int(m[2]) for n in trees[0, stage] if (m := LAYER.fullmatch(n))}
        if absent := set(range(len(numbers))) - numbers:
            raise CheckpointError(
                f"{files[0, stage]}: layer {min(absent)} of {len(numbers)} is missing"
            )
        before.append(total)
        total += len(numbers)
    return total, before


def _renumbered(tree: Mapping[str, View], before: int) -> dict[str, View]:
    """A stage's tensors with layers numbered through the whole model."""
    found = {}
    for name, view in tree.items():
        match = LAYER.fullmatch(name)
        found[f"{match[1]}{int(match[2]) + before}{match[3]}" if match else name] = view
    return found


def _rows(ranks: Mapping[tuple[int, int], RankFile], ways: int) -> int:
    """Rows of the embedding over all tensor ranks, padding included."""
    total = 0
    for rank in range(ways):
        view = ranks[rank, 0].tensors.get(EMBEDDING)
        if view is None or len(view.shape) != 2:
            raise CheckpointError(
                f"{ranks[rank, 0].file}: tensor {EMBEDDING} [vocabulary, hidden] is missing"
            )
        if rank and view.shape != ranks[0, 0].tensors[EMBEDDING].shape:
            raise CheckpointError(
                f"{ranks[rank, 0].file}: tensor {EMBEDDING}: expected shape "
                f"{list(ranks[0, 0].tensors[EMBEDDING].shape)} as in rank 0, found "
                f"{list(view.shape)}"
            )
        total += view.shape[0]
    return total


def _sizes(ranks: Mapping[tuple[int, int], RankFile], layers: int, rows: int) -> dict[str, int]:
    """The sizes that the tensors' shapes say, in the words of Megatron's args."""
    first = ranks[0, 0]
    ways = 1 + max(rank for rank, _ in ranks)
    sizes = {"num_layers": layers, "padded_vocab_size": rows}
    for key, name, factor in (
        ("hidden_size", "encoder.layers.0.input_layernorm.weight", 1),
        ("max_position_embeddings", "embedding.position_embeddings.weight", 1),
        ("ffn_hidden_size", "encoder.layers.0.mlp.dense_h_to_4h.weight", ways),
    ):
        view = first.tensors.get(name)
        if view is None or not view.shape:
            raise CheckpointError(f"{first.file}: tensor {name} is missing")
        sizes[key] = view.shape[0] * factor
    return sizes


def _stage(placed: Placed, stage_of: Sequence[int]) -> int:
    """The pipeline stage that holds a tensor."""
    if match := LAYER.fullmatch(placed.stored):
        return stage_of[int(match[2])]
    return 0 if placed.stored.startswith("embedding.") else stage_of[-1]


def _refuse_others(
    ranks: Mapping[tuple[int, int], RankFile],
    used: Mapping[tuple[int, int], set[str]],
    rows: int,
    hidden: int,
) -> None:
    """Refuse tensors that belong to nothing; the last stage has a copy of the embedding as its
    head, which must have its shape."""
    for place, rank in ranks.items():
        others = set(rank.tensors) - used[place]
        if (copy := rank.tensors.get(_HEAD_COPY)) is not None and copy.shape == (rows, hidden):
            others.discard(_HEAD_COPY)
        if others:
            name = min(others)
            raise CheckpointError(
                f"{rank.file}: tensor {shown(name)} {list(rank.tensors[name].shape)} belongs to no "
                "part of the model"
            )
