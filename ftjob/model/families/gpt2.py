"""GPT-2: config.json, tensor names and cuts of the checkpoints that transformers writes.

Its linear weights are stored [in, out] (Conv1D), so each is transposed on the way in; q, k and v
lie fused along the output axis. The plan, `load` and `random` read the rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ftjob.checkpoint.shard import Split, TensorRule
from ftjob.errors import CheckpointError
from ftjob.model.arch import Activation, Arch

MODEL_TYPES = ("gpt2",)
PREFIXES = ("transformer.", "")
# Causal masks that old releases saved as buffers, and the tied head saved a second time.
IGNORED = ("h.{layer}.attn.bias", "h.{layer}.attn.masked_bias", "lm_head.weight")

_ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "gelu": "gelu",
        "relu": "relu",
    }
)


def read_config(config: Mapping[str, Any]) -> Arch:
    """The `Arch` of a GPT-2 config.json, keys as in transformers' GPT2Config.

    Raises:
        KeyError: for a missing size.
        CheckpointError: for a variant that computes something else.
    """
    activation = config.get("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        raise CheckpointError(
            f"config.json: activation_function={activation!r} is not supported; "
            f"known: {', '.join(_ACTIVATIONS)}"
        )
    for flag, usual in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
        ("tie_word_embeddings", True),
    ):
        if config.get(flag, usual) is not usual:
            raise CheckpointError(
                f"config.json: {flag}={config[flag]} is not supported, only {usual}"
            )
    for name in ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions"):
        if not isinstance(config[name], int) or config[name] < 1:
            raise CheckpointError(
                f"config.json: {name}={config[name]!r} must be a whole number of at least 1"
            )
    hidden = config["n_embd"]
    if hidden % config["n_head"]:
        raise CheckpointError(
            f"config.json: n_embd={hidden} is not a multiple of n_head={config['n_head']}"
        )
    return Arch(
        family="gpt2",
        layers=config["n_layer"],
        heads=config["n_head"],
        hidden=hidden,
        ffn=config.get("n_inner") or 4 * hidden,
        vocab=config["vocab_size"],
        positions=config["n_positions"],
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        activation=_ACTIVATIONS[activation],
        tied_head=True,
    )


def from_shape(
    layers: int, heads: int, hidden: int, ffn: int | None, vocab: int, positions: int
) -> Arch:
    """A GPT-2 of that shape."""
    return read_config(
        {
            "n_layer": layers,
            "n_head": heads,
            "n_embd": hidden,
            "n_inner": ffn,
            "vocab_size": vocab,
            "n_positions": positions,
        }
    )


def tensors(arch: Arch) -> tuple[TensorRule, ...]:
    """Every tensor of a GPT-2 checkpoint, in reading order."""
    h, f = arch.hidden, arch.ffn
    columns, rows = Split(axis=1), Split(axis=0)
    vocab = Split(axis=0, padded=True)
    qkv = Split(axis=1, fused=3)

    def norm(parameter: str, source: str) -> list[TensorRule]:
        where: Any = "layer" if "{layer}" in source else "last"
        return [
            TensorRule(f"{parameter}.weight", f"{source}.weight", (h,), where, mean=1.0),
            TensorRule(f"{parameter}.bias", f"{source}.bias", (h,), where),
        ]

    def linear(
        parameter: str, source: str, shape: tuple[int, int], cut: Split, bias: Split | None
    ) -> list[TensorRule]:
        weight = TensorRule(
            f"layers.{{layer}}.{parameter}.weight",
            f"h.{{layer}}.{source}.weight",
            shape,
            "layer",
            cut,
            transpose=True,
            quantize=True,
        )
        rule = TensorRule(
            f"layers.{{layer}}.{parameter}.bias", f"h.{{layer}}.{source}.bias", shape[1:], "layer"
        )
        return [
            weight,
            rule
            if bias is None
            else TensorRule(rule.parameter, rule.source, rule.shape, "layer", bias),
        ]

    return (
        TensorRule("embed.tokens", "wte.weight", (arch.vocab, h), "first", vocab),
        TensorRule("embed.positions", "wpe.weight", (arch.positions, h), "first"),
        *norm("layers.{layer}.attention_norm", "h.{layer}.ln_1"),
        *linear("attention.qkv", "attn.c_attn", (h, 3 * h), qkv, Split(axis=0, fused=3)),
        *linear("attention.out", "attn.c_proj", (h, h), rows, None),
        *norm("layers.{layer}.mlp_norm", "h.{layer}.ln_2"),
        *linear("mlp.up", "mlp.c_fc", (h, f), columns, Split(axis=0)),
        *linear("mlp.down", "mlp.c_proj", (f, h), rows, None),
        *norm("norm", "ln_f"),
        TensorRule("head", "wte.weight", (arch.vocab, h), "last", vocab, tied_to="embed.tokens"),
    )
