"""The settings files that `convert` writes beside the tensors: config.json, config.ini, Megatron's
args.

What a format has no words for is refused: a model that would compute something else there is not
written.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import ftjob
from ftjob.checkpoint.fastertransformer import OURS
from ftjob.checkpoint.megatron_args import TRUE_VOCAB
from ftjob.errors import ConfigError
from ftjob.model.arch import Arch, Specials

Sections = dict[str, dict[str, Any]]
FT_DTYPES = MappingProxyType({"F32": "fp32", "F16": "fp16", "BF16": "bf16"})
_TORCH_DTYPES = MappingProxyType({"F32": "float32", "F16": "float16", "BF16": "bfloat16"})
_FT_ACTIVATIONS = MappingProxyType({"gelu_tanh": "Gelu", "relu": "Relu"})
_CLASSES = MappingProxyType(
    {
        "gpt2": "GPT2LMHeadModel",
        "t5": "T5ForConditionalGeneration",
        "mt5": "MT5ForConditionalGeneration",
    }
)


def config_json(
    config: Mapping[str, Any], arch: Arch, specials: Specials, dtype: str
) -> dict[str, Any]:
    """config.json of a model whose own keys are `config`."""
    ends = list(specials.ends)
    made = dict(config) | {
        "architectures": [_CLASSES[str(config["model_type"])]],
        "dtype": _TORCH_DTYPES[dtype],
        "eos_token_id": ends if len(ends) > 1 else ends[0] if ends else None,
    }
    if arch.seq2seq:
        made |= {"is_encoder_decoder": True, "decoder_start_token_id": specials.start}
    return made


def config_ini(
    config: Mapping[str, Any], arch: Arch, specials: Specials, dtype: str, ways: int
) -> str:
    """config.ini of FasterTransformer.

    Raises:
        ConfigError: for a model that it has no words for.
    """
    word = FT_DTYPES[dtype]
    sections = (
        _t5(config, arch, specials, word) if arch.seq2seq else _gpt(arch, specials, word, ways)
    )
    sections[OURS] = {"version": ftjob.__version__, "settings": "meant as they stand"}
    return "".join(
        f"[{name}]\n" + "".join(f"{k} = {v}\n" for k, v in values.items()) + "\n"
        for name, values in sections.items()
    )


def _gpt(arch: Arch, specials: Specials, dtype: str, ways: int) -> Sections:
    if arch.activation not in _FT_ACTIVATIONS:
        raise ConfigError(
            f"convert.to=fastertransformer: a GPT with activation {arch.activation} cannot be "
            f"stated there; known: {', '.join(_FT_ACTIVATIONS)}."
        )
    ends = {"start_id": specials.ends[0], "end_id": specials.ends[0]} if specials.ends else {}
    gpt = {
        "model_name": "gpt",
        "head_num": arch.heads,
        "size_per_head": arch.head_size,
        "inter_size": arch.ffn,
        "max_pos_seq_len": arch.positions,
        "num_layer": arch.layers,
        "vocab_size": arch.vocab,
        **ends,
        "weight_data_type": dtype,
        "tensor_para_size": ways,
        "layernorm_eps": arch.norm_eps,
        "layernorm_type": "pre_layernorm",
        "activation_type": _FT_ACTIVATIONS[arch.activation],
        "has_positional_encoding": True,
        "has_pre_decoder_layernorm": False,
        "has_post_decoder_layernorm": True,
    }
    return {"gpt": gpt}


def _t5(config: Mapping[str, Any], arch: Arch, specials: Specials, dtype: str) -> Sections:
    """Both stacks have the whole configuration, as the converter of old dumped it."""
    assert arch.relative is not None
    plain = {k: v for k, v in config.items() if not isinstance(v, list)}
    plain.pop("relative_attention_num_buckets", None)
    gated = {"gelu_tanh": "gated-gelu", "gelu": "gated-gelu", "relu": "gated-relu"}
    both = plain | {
        "num_heads": arch.heads,
        "d_kv": arch.head_size,
        "d_model": arch.hidden,
        "d_ff": arch.ffn,
        "vocab_size": arch.vocab,
        "relative_attention_num_buckets_or_max_pos_seq_len": arch.relative.buckets,
        "relative_attention_max_distance": arch.relative.max_distance,
        "layer_norm_epsilon": arch.norm_eps,
        "feed_forward_proj": gated[arch.activation] if arch.gated else arch.activation,
        "dense_act_fn": {"gelu_tanh": "gelu_new"}.get(arch.activation, arch.activation),
        "is_gated_act": arch.gated,
        # FasterTransformer scales the head's input where this is true, whatever the head
        "tie_word_embeddings": arch.scaled_head,
        "scale_decoder_outputs": arch.scaled_head,
        "decoder_start_token_id": specials.start,
        "eos_token_id": specials.ends[0] if specials.ends else None,
        "weight_data_type": dtype,
    }
    if not arch.gated and arch.activation == "gelu_tanh":
        both["feed_forward_proj"] = "gelu_new"
    return {
        "encoder": both | {"num_layers": arch.encoder_layers},
        "decoder": both | {"num_layers": arch.layers},
        "structure": {
            "t5_with_bias": "false",
            "use_gated_activation": "1" if arch.gated else "false",
            "position_embedding_type": "relative",
        },
    }


def megatron_args(arch: Arch, dtype: str, ways: int, stages: int) -> dict[str, Any]:
    """Megatron-LM's args of a GPT; the vocabulary is padded as Megatron pads it.

    Raises:
        ConfigError: for a model that it has no words for.
    """
    if arch.seq2seq:
        raise ConfigError(
            "convert.to=megatron: a T5 cannot be stated there: Megatron-LM's has biases, layer "
            "norms and learned positions. Legal for T5: hf, fastertransformer."
        )
    if arch.activation not in ("gelu_tanh", "gelu"):
        raise ConfigError(
            f"convert.to=megatron: a GPT with activation {arch.activation} cannot be stated there; "
            "known: gelu_tanh, gelu."
        )
    multiple = 128 * ways
    return {
        "num_layers": arch.layers,
        "hidden_size": arch.hidden,
        "num_attention_heads": arch.heads,
        "kv_channels": arch.head_size,
        "ffn_hidden_size": arch.ffn,
        "max_position_embeddings": arch.positions,
        "seq_length": arch.positions,
        "make_vocab_size_divisible_by": 128,
        "padded_vocab_size": -(-arch.vocab // multiple) * multiple,
        TRUE_VOCAB: arch.vocab,
        "layernorm_epsilon": arch.norm_eps,
        "bias_gelu_fusion": arch.activation == "gelu_tanh",
        "openai_gelu": False,
        "apply_residual_connection_post_layernorm": False,
        "untie_embeddings_and_output_weights": not arch.tied_head,
        "tensor_model_parallel_size": ways,
        "pipeline_model_parallel_size": stages,
        "fp16": dtype == "F16",
        "bf16": dtype == "BF16",
        "tokenizer_type": "GPT2BPETokenizer",
    }
