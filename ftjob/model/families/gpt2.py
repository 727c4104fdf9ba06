"""GPT-2: config.json, tensor names and cuts of the checkpoints that transformers writes.

Its linear weights are stored [in, out] (Conv1D), so each is transposed on the way in; q, k and v
lie fused along the output axis. The plan, `load` and `random` read the rules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from ftjob.checkpoint.shard import Place, Split, TensorRule, Whole
from ftjob.config.groups import ArchConfig
from ftjob.errors import CheckpointError
from ftjob.model.arch import Activation, Arch, Specials

MODEL_TYPES = ("gpt2",)
PREFIXES = ("transformer.", "")
# Causal masks that old releases saved as buffers, and the tied head saved a second time.
IGNORED = ("h.{layer}.attn.bias", "h.{layer}.attn.masked_bias", "lm_head.weight")
TOKENIZER = "builtin:gpt2"

# What GPT2Config says where config.json does not, and writes whatever the vocabulary is.
_DEFAULT_EOS = 50256

_ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "gelu": "gelu",
        "relu": "relu",
    }
)


def read_config(config: Mapping[str, Any], names: Collection[str] = ()) -> Arch:
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
        head_size=hidden // config["n_head"],
        hidden=hidden,
        ffn=config.get("n_inner") or 4 * hidden,
        vocab=config["vocab_size"],
        positions=config["n_positions"],
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        activation=_ACTIVATIONS[activation],
        tied_head=config.get("tie_word_embeddings", True) is not False,
    )


def from_shape(shape: ArchConfig) -> Arch:
    """A GPT-2 of that shape."""
    return read_config(
        {
            "n_layer": shape.layers,
            "n_head": shape.heads,
            "n_embd": shape.hidden,
            "n_inner": shape.ffn,
            "vocab_size": shape.vocab,
            "n_positions": shape.positions,
        }
    )


def specials(config: Mapping[str, Any]) -> Specials:
    """The ids that end a row: GPT2Config's, but none where that is its default and the vocabulary
    is too small for it, for then it was never chosen."""
    eos = config.get("eos_token_id", _DEFAULT_EOS)
    ends = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
    return Specials(
        None, () if ends == (_DEFAULT_EOS,) and config["vocab_size"] <= ends[0] else ends
    )


def tensors(arch: Arch) -> tuple[TensorRule, ...]:
    """Every tensor of a GPT-2 checkpoint, in reading order."""
    assert arch.positions is not None
    h, f, positions = arch.hidden, arch.ffn, arch.positions
    columns, rows = Split(axis=1), Split(axis=0)
    vocab = Split(axis=0, padded=True)
    qkv = Split(axis=1, fused=3)
    head, tied = ("wte.weight", "embed.tokens") if arch.tied_head else ("lm_head.weight", None)

    def norm(parameter: str, source: str) -> list[TensorRule]:
        where: Place = "layer" if "{layer}" in source else "last"
        return [
            TensorRule(f"{parameter}.weight", (f"{source}.weight",), (h,), where, mean=1.0),
            TensorRule(f"{parameter}.bias", (f"{source}.bias",), (h,), where),
        ]

    def linear(
        parameter: str, source: str, shape: tuple[int, int], cut: Split, bias: Split | None
    ) -> list[TensorRule]:
        weight = TensorRule(
            f"layers.{{layer}}.{parameter}.weight",
            (f"h.{{layer}}.{source}.weight",),
            shape,
            "layer",
            cut,
            transpose=True,
            quantize=True,
        )
        added = TensorRule(
            f"layers.{{layer}}.{parameter}.bias",
            (f"h.{{layer}}.{source}.bias",),
            shape[1:],
            "layer",
            bias or Whole(),
        )
        return [weight, added]

    return (
        TensorRule("embed.tokens", ("wte.weight",), (arch.vocab, h), "first", vocab),
        TensorRule("embed.positions", ("wpe.weight",), (positions, h), "first"),
        *norm("layers.{layer}.attention_norm", "h.{layer}.ln_1"),
        *linear("attention.qkv", "attn.c_attn", (h, 3 * h), qkv, Split(axis=0, fused=3)),
        *linear("attention.out", "attn.c_proj", (h, h), rows, None),
        *norm("layers.{layer}.mlp_norm", "h.{layer}.ln_2"),
        *linear("mlp.up", "mlp.c_fc", (h, f), columns, Split(axis=0)),
        *linear("mlp.down", "mlp.c_proj", (f, h), rows, None),
        *norm("norm", "ln_f"),
        TensorRule("head", (head,), (arch.vocab, h), "last", vocab, tied_to=tied),
    )
