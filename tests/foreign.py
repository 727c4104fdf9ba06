"""FasterTransformer folders and Megatron-LM checkpoints of given weights, written straight from the
formats' descriptions with numpy: the oracle of the readers, and of what `convert` writes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

Arrays = dict[str, np.ndarray[Any, Any]]
NP = {"fp32": np.float32, "fp16": np.float16}


def hf_weights(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """config.json and the tensors of a folder of safetensors, without GPT-2's prefix."""
    config = json.loads((folder / "config.json").read_text())
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= {n.removeprefix("transformer."): t for n, t in load_file(file).items()}
    return config, found


def write_ini(path: Path, sections: dict[str, dict[str, Any]]) -> None:
    lines = []
    for name, values in sections.items():
        lines += [f"[{name}]", *(f"{k} = {v}" for k, v in values.items()), ""]
    path.write_text("\n".join(lines))


def write_ft_gpt(source: Path, out: Path, ways: int, dtype: str = "fp32", **more: Any) -> Path:
    """`out`/N-gpu as the GPT converter lays it out; `more` changes config.ini, None takes out."""
    config, tensors = hf_weights(source)
    folder = out / f"{ways}-gpu"
    folder.mkdir(parents=True)
    hidden, layers = config["n_embd"], config["n_layer"]

    def put(name: str, value: np.ndarray[Any, Any]) -> None:
        value.astype(NP[dtype]).tofile(folder / f"model.{name}.bin")

    def ranks(name: str, value: np.ndarray[Any, Any], axis: int) -> None:
        for rank, part in enumerate(np.split(value, ways, axis=axis)):
            put(f"{name}.{rank}", part)

    def get(name: str) -> np.ndarray[Any, Any]:
        return tensors[name].float().numpy()

    put("wte", get("wte.weight"))
    put("wpe", get("wpe.weight"))
    for part in ("weight", "bias"):
        put(f"final_layernorm.{part}", get(f"ln_f.{part}"))
    if "lm_head.weight" in tensors:
        put("lm_head.weight", get("lm_head.weight"))
    for i in range(layers):
        h, m = f"h.{i}", f"layers.{i}"
        for part in ("weight", "bias"):
            put(f"{m}.input_layernorm.{part}", get(f"{h}.ln_1.{part}"))
            put(f"{m}.post_attention_layernorm.{part}", get(f"{h}.ln_2.{part}"))
        qkv, bias = get(f"{h}.attn.c_attn.weight"), get(f"{h}.attn.c_attn.bias")
        ranks(f"{m}.attention.query_key_value.weight", qkv.reshape(hidden, 3, hidden), 2)
        ranks(f"{m}.attention.query_key_value.bias", bias.reshape(3, hidden), 1)
        ranks(f"{m}.attention.dense.weight", get(f"{h}.attn.c_proj.weight"), 0)
        put(f"{m}.attention.dense.bias", get(f"{h}.attn.c_proj.bias"))
        ranks(f"{m}.mlp.dense_h_to_4h.weight", get(f"{h}.mlp.c_fc.weight"), 1)
        ranks(f"{m}.mlp.dense_h_to_4h.bias", get(f"{h}.mlp.c_fc.bias"), 0)
        ranks(f"{m}.mlp.dense_4h_to_h.weight", get(f"{h}.mlp.c_proj.weight"), 0)
        put(f"{m}.mlp.dense_4h_to_h.bias", get(f"{h}.mlp.c_proj.bias"))
    gpt = {
        "model_name": "gpt",
        "head_num": config["n_head"],
        "size_per_head": hidden // config["n_head"],
        "inter_size": config["n_inner"] or 4 * hidden,
        "num_layer": layers,
        "max_pos_seq_len": config["n_positions"],
        "vocab_size": tensors["wte.weight"].shape[0],
        "start_id": config["bos_token_id"],
        "end_id": config["eos_token_id"],
        "weight_data_type": dtype,
        "tensor_para_size": ways,
    } | more
    write_ini(folder / "config.ini", {"gpt": {k: v for k, v in gpt.items() if v is not None}})
    return folder


def write_ft_t5(
    source: Path, out: Path, ways: int, dtype: str = "fp32", structure: Any = None
) -> Path:
    """`out`/N-gpu as the T5 converter lays it out."""
    config, tensors = hf_weights(source)
    folder = out / f"{ways}-gpu"
    folder.mkdir(parents=True)
    tensors.setdefault("lm_head.weight", tensors["shared.weight"])

    def put(name: str, value: np.ndarray[Any, Any]) -> None:
        value.astype(NP[dtype]).tofile(folder / f"{name}.bin")

    for name, tensor in tensors.items():
        value = tensor.float().numpy()
        if name == "shared.weight":
            put("shared.weight_T", value)
            put("shared.weight", np.ascontiguousarray(value.T))
        elif name == "lm_head.weight" or "layer_norm" in name:
            put(name, value)
        elif name.startswith("decoder") and "SelfAttention" in name and name[-8] in "qkv":
            if name.endswith("q.weight"):
                stem = name.removesuffix("q.weight")
                three = [tensors[f"{stem}{p}.weight"].float().numpy().T for p in "qkv"]
                for rank, part in enumerate(np.split(np.stack(three, axis=1), ways, axis=2)):
                    put(f"{stem}qkv.weight.{rank}", part)
        else:
            axis = 0 if name.endswith((".o.weight", ".wo.weight", "_bias.weight")) else 1
            stored = name.replace("wi_0", "wi").replace("wi_1", "wi2")
            for rank, part in enumerate(np.split(value.T, ways, axis=axis)):
                put(f"{stored}.{rank}", np.ascontiguousarray(part))
    both = {k: v for k, v in config.items() if not isinstance(v, list)}
    buckets = both.pop("relative_attention_num_buckets")
    both |= {"relative_attention_num_buckets_or_max_pos_seq_len": buckets}
    both |= {"weight_data_type": dtype}
    gated = "1" if str(config["feed_forward_proj"]).startswith("gated") else "false"
    shape = {"t5_with_bias": "false", "use_gated_activation": gated}
    write_ini(
        folder / "config.ini",
        {
            "encoder": both,
            "decoder": both | {"num_layers": config["num_decoder_layers"]},
            "structure": shape | {"position_embedding_type": "relative"} | (structure or {}),
        },
    )
    return folder


def qkv_rows(value: np.ndarray[Any, Any], heads: int, version: float) -> np.ndarray[Any, Any]:
    """Rows [3 * n, ...] of q, k and v blocks of one rank, in the order of a Megatron version."""
    rest = value.shape[1:]
    three = value.reshape(3, heads, -1, *rest)  # [3, heads, hn, ...]
    if version == 0:
        ordered = three
    elif version == 1:
        ordered = np.moveaxis(three, 0, 2)  # [heads, hn, 3, ...]
    else:
        ordered = np.moveaxis(three, 0, 1)  # [heads, 3, hn, ...]
    return np.ascontiguousarray(ordered).reshape(value.shape)


def args_of(config: dict[str, Any], ways: int, stages: int, padded: int) -> dict[str, Any]:
    """What Megatron's args say of such a model, and some that real files have besides."""
    return {
        "num_layers": config["n_layer"],
        "hidden_size": config["n_embd"],
        "num_attention_heads": config["n_head"],
        "max_position_embeddings": config["n_positions"],
        "ffn_hidden_size": config["n_inner"] or 4 * config["n_embd"],
        "padded_vocab_size": padded,
        "layernorm_epsilon": config["layer_norm_epsilon"],
        "tensor_model_parallel_size": ways,
        "pipeline_model_parallel_size": stages,
        "params_dtype": torch.float16,
        "bias_gelu_fusion": True,
        "openai_gelu": False,
        "lr": 1e-4,
        "data_path": ["a", "b"],
    }


def write_megatron(
    source: Path,
    out: Path,
    *,
    ways: int = 1,
    stages: int = 1,
    version: float = 3.0,
    padding: int = 0,
    dtype: torch.dtype = torch.float32,
    zipped: bool = True,
    with_args: bool = True,
    folder: str = "release",
    extra: Any = None,
) -> Path:
    """A Megatron-LM GPT checkpoint; `padding` rows of large values follow the vocabulary."""
    config, tensors = hf_weights(source)
    hidden, heads, layers = config["n_embd"], config["n_head"], config["n_layer"]
    block = "transformer" if version < 2 else "encoder"
    attention = "attention" if version < 3 else "self_attention"

    def get(name: str) -> np.ndarray[Any, Any]:
        return tensors[name].float().numpy()

    table = get("wte.weight")
    table = np.concatenate([table, np.full((padding, hidden), 99.0, np.float32)])
    for stage in range(stages):
        for rank in range(ways):
            own: dict[str, Any] = {}
            each = layers // stages
            for i in range(each):
                h, m = f"h.{stage * each + i}", f"layers.{i}"
                for part in ("weight", "bias"):
                    own[f"{m}.input_layernorm.{part}"] = get(f"{h}.ln_1.{part}")
                    own[f"{m}.post_attention_layernorm.{part}"] = get(f"{h}.ln_2.{part}")
                for part in ("weight", "bias"):  # [3, hidden, ...] as torch stores: out first
                    three = get(f"{h}.attn.c_attn.{part}").T.reshape(3, hidden, -1)
                    mine = np.split(three, ways, axis=1)[rank].reshape(3 * hidden // ways, -1)
                    rows = qkv_rows(mine, heads // ways, version)
                    own[f"{m}.{attention}.query_key_value.{part}"] = (
                        rows if part == "weight" else rows.reshape(-1)
                    )
                for ours, theirs, axis in (
                    ("attn.c_proj", f"{attention}.dense", 1),
                    ("mlp.c_fc", "mlp.dense_h_to_4h", 0),
                    ("mlp.c_proj", "mlp.dense_4h_to_h", 1),
                ):
                    weight, bias = get(f"{h}.{ours}.weight").T, get(f"{h}.{ours}.bias")
                    own[f"{m}.{theirs}.weight"] = np.split(weight, ways, axis=axis)[rank]
                    own[f"{m}.{theirs}.bias"] = bias if axis else np.split(bias, ways)[rank]
            if stage == stages - 1:
                for part in ("weight", "bias"):
                    own[f"final_layernorm.{part}"] = get(f"ln_f.{part}")
            language: dict[str, Any] = {block: {k: _tensor(v, dtype) for k, v in own.items()}}
            mine = _tensor(np.split(table, ways)[rank], dtype)
            model: dict[str, Any] = {"language_model": language}
            if stage == 0:
                positions = _tensor(get("wpe.weight"), dtype)
                language["embedding"] = {
                    "word_embeddings": {"weight": mine},
                    "position_embeddings": {"weight": positions},
                }
            elif stage == stages - 1:
                model["word_embeddings_for_head"] = {"weight": mine}
            root: dict[str, Any] = {"iteration": 7, "model": model}
            if version:
                root["checkpoint_version"] = version
            if with_args:
                stated = args_of(config, ways, stages, len(table))
                root["args"] = argparse.Namespace(**stated)
            root |= extra or {}
            name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else "")
            path = out / folder / name / "model_optim_rng.pt"
            path.parent.mkdir(parents=True)
            torch.save(root, path, _use_new_zipfile_serialization=zipped)
    return out


def _tensor(value: np.ndarray[Any, Any], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.array(value, order="C")).to(dtype)
