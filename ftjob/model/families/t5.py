"""T5, mT5 and FLAN-T5: config.json, tensor names and cuts of the checkpoints transformers writes.

Its linear weights are stored [out, in] without biases; q, k and v, and the two halves of a gated
MLP, are tensors of their own and lie stacked in one parameter. The plan, `load` and `random` read
the rules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from ftjob.checkpoint.shard import Place, Split, TensorRule
from ftjob.config.groups import ArchConfig
from ftjob.errors import CheckpointError
from ftjob.model.arch import Activation, Arch, Relative, Specials

MODEL_TYPES = ("t5", "mt5")
PREFIXES = ("",)
# The embedding that old releases saved again for each stack, and a table that T5 never reads.
IGNORED = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)
TOKENIZER = "builtin:demo_t5"

_ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "relu": "relu",
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
    }
)
_SIZES = ("num_layers", "num_heads", "d_model", "d_kv", "d_ff", "vocab_size")


def read_config(config: Mapping[str, Any], names: Collection[str]) -> Arch:
    """The `Arch` of a T5 or mT5 config.json, keys and their order as in transformers' T5Config.

    The head is its own where the checkpoint has a tensor for it, whatever tie_word_embeddings
    says: transformers 5 writes true for all, and a head saved twice has the embedding's values.

    Raises:
        KeyError: for a missing size.
        CheckpointError: for a variant that computes something else, or an impossible size.
    """
    sizes = {name: _size(name, config[name]) for name in _SIZES}
    decoder = config.get("num_decoder_layers")
    eps = config.get("layer_norm_epsilon", 1e-6)
    if not isinstance(eps, float) or eps <= 0:
        raise CheckpointError(f"config.json: layer_norm_epsilon={eps!r} must be above 0")
    for flag, usual in (("is_encoder_decoder", True), ("is_decoder", False)):
        if config.get(flag, usual) is not usual:
            raise CheckpointError(
                f"config.json: {flag}={config[flag]} is not supported, only {usual}"
            )
    activation, gated = _mlp(config)
    return Arch(
        family="t5",
        layers=sizes["num_layers"] if decoder is None else _size("num_decoder_layers", decoder),
        encoder_layers=sizes["num_layers"],
        heads=sizes["num_heads"],
        head_size=sizes["d_kv"],
        hidden=sizes["d_model"],
        ffn=sizes["d_ff"],
        vocab=sizes["vocab_size"],
        positions=None,
        relative=_relative(config),
        norm="rms",
        norm_eps=eps,
        activation=activation,
        gated=gated,
        tied_head="lm_head.weight" not in names,
        scaled_head=_scaled(config),
    )


def _size(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise CheckpointError(f"config.json: {name}={value!r} must be a whole number of at least 1")
    return value


def _mlp(config: Mapping[str, Any]) -> tuple[Activation, bool]:
    """The activation and whether it gates: what feed_forward_proj says, where T5Config's derived
    keys, which it writes beside, do not say otherwise."""
    wanted = config.get("feed_forward_proj", "gated-gelu" if _is_mt5(config) else "relu")
    first, _, rest = str(wanted).partition("-")
    gated = config.get("is_gated_act", first == "gated")
    usual = "gelu_new" if wanted == "gated-gelu" else rest or first  # T5Config: v1.1 says gelu
    name = config.get("dense_act_fn", usual)
    if (rest and first != "gated") or name not in _ACTIVATIONS or type(gated) is not bool:
        known = ", ".join([*_ACTIVATIONS, *(f"gated-{a}" for a in _ACTIVATIONS)])
        raise CheckpointError(
            f"config.json: feed_forward_proj={wanted!r} (dense_act_fn={name!r}, "
            f"is_gated_act={gated!r}) is not supported; known: {known}"
        )
    return _ACTIVATIONS[name], gated


def _relative(config: Mapping[str, Any]) -> Relative:
    """The buckets of distances: half of an encoder's are for each direction, and half of those
    for one distance each."""
    buckets = _size(
        "relative_attention_num_buckets", config.get("relative_attention_num_buckets", 32)
    )
    distance = _size(
        "relative_attention_max_distance", config.get("relative_attention_max_distance", 128)
    )
    if buckets % 4 or distance <= buckets // 2:
        raise CheckpointError(
            f"config.json: relative_attention_num_buckets={buckets} must be a multiple of 4, and "
            f"relative_attention_max_distance={distance} above half of it"
        )
    return Relative(buckets, distance)


def _is_mt5(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "mt5"


def _scaled(config: Mapping[str, Any]) -> bool:
    """Whether the head takes its input times hidden ** -0.5: T5 v1.0 does and v1.1 does not, which
    T5Config tells by tie_word_embeddings and writes as scale_decoder_outputs; mT5 never does."""
    if _is_mt5(config):
        return False
    stated = config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
    return bool(stated)


def from_shape(shape: ArchConfig) -> Arch:
    """A T5 of that shape: v1.0 where no variant is named."""
    assert shape.hidden is not None
    assert shape.heads is not None
    newer = shape.variant == "v1_1"
    return read_config(
        {
            "num_layers": shape.encoder_layers or shape.layers,
            "num_decoder_layers": shape.layers,
            "num_heads": shape.heads,
            "d_model": shape.hidden,
            "d_kv": shape.head_size or shape.hidden // shape.heads,
            "d_ff": shape.ffn or 4 * shape.hidden,
            "vocab_size": shape.vocab,
            "feed_forward_proj": "gated-gelu" if newer else "relu",
            "tie_word_embeddings": not newer,
        },
        ("lm_head.weight",) if newer else (),
    )


def specials(config: Mapping[str, Any]) -> Specials:
    """The decoder's first input, by default T5's padding, and the ids that end a row, by default
    T5Config's."""
    start, eos = config.get("decoder_start_token_id"), config.get("eos_token_id", 1)
    ends = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
    return Specials(0 if start is None else start, ends)


def tensors(arch: Arch) -> tuple[TensorRule, ...]:
    """Every tensor of a T5 checkpoint, in reading order.

    Scores are not scaled, so q is small from the start: random weights have the deviations of
    transformers' T5PreTrainedModel._init_weights, which are mesh-tensorflow's. A head of its own
    has 1 there; here it is as small as makes logits those of a scaled one.
    """
    assert arch.relative is not None
    vocab, table = (arch.vocab, arch.hidden), (arch.relative.buckets, arch.heads)
    padded, small = Split(axis=0, padded=True), arch.hidden**-0.5
    bias = "{}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    head, tied = ("shared.weight", "embed.tokens") if arch.tied_head else ("lm_head.weight", None)
    return (
        TensorRule("embed.tokens", ("shared.weight",), vocab, "first", padded, std=1.0),
        *(
            TensorRule(f"{s}_bias.table", (bias.format(s),), table, "every", Split(1), std=small)
            for s in ("encoder", "decoder")
        ),
        *_stack(arch, "encoder"),
        _norm(arch, "encoder_norm", "encoder.final_layer_norm", "last"),
        *_stack(arch, "layer"),
        _norm(arch, "norm", "decoder.final_layer_norm", "last"),
        TensorRule(
            "head", (head,), vocab, "last", padded, tied_to=tied, std=1.0 if tied else small
        ),
    )


def _norm(arch: Arch, ours: str, theirs: str, place: Place) -> TensorRule:
    return TensorRule(f"{ours}.weight", (f"{theirs}.weight",), (arch.hidden,), place, mean=1.0)


def _stack(arch: Arch, place: Literal["encoder", "layer"]) -> list[TensorRule]:
    """The layers of a stack: self-attention, in the decoder cross-attention, and the MLP."""
    h, f, w = arch.hidden, arch.ffn, arch.width
    to_q, to_kv = (h * arch.head_size) ** -0.5, h**-0.5
    ours = "encoder.{layer}" if place == "encoder" else "layers.{layer}"
    theirs = f"{'encoder' if place == 'encoder' else 'decoder'}.block.{{layer}}.layer"

    def norm(name: str, number: int) -> TensorRule:
        return _norm(arch, f"{ours}.{name}", f"{theirs}.{number}.layer_norm", place)

    def into(
        name: str, source: str, parts: Sequence[str], size: int, std: float | tuple[float, ...]
    ) -> TensorRule:
        names = tuple(f"{theirs}.{source}.{part}.weight" for part in parts)
        parameter, cut = f"{ours}.{name}.weight", Split(axis=0)
        return TensorRule(parameter, names, (size, h), place, cut, quantize=True, std=std)

    def out_of(name: str, source: str, size: int) -> TensorRule:
        names, cut = (f"{theirs}.{source}.weight",), Split(axis=1)
        parameter, std = f"{ours}.{name}.weight", size**-0.5
        return TensorRule(parameter, names, (h, size), place, cut, quantize=True, std=std)

    own, cross = "0.SelfAttention", "1.EncDecAttention"
    across = [
        norm("cross_norm", 1),
        into("cross.q", cross, ["q"], w, to_q),
        into("cross.kv", cross, ["k", "v"], w, to_kv),
        out_of("cross.out", f"{cross}.o", w),
    ]
    number = 1 if place == "encoder" else 2
    mlp = f"{number}.DenseReluDense"
    return [
        norm("attention_norm", 0),
        into("attention.qkv", own, ["q", "k", "v"], w, (to_q, to_kv, to_kv)),
        out_of("attention.out", f"{own}.o", w),
        *(across if place == "layer" else ()),
        norm("mlp_norm", number),
        into("mlp.up", mlp, ["wi_0", "wi_1"] if arch.gated else ["wi"], f, h**-0.5),
        out_of("mlp.down", f"{mlp}.wo", f),
    ]
