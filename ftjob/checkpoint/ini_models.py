"""What config.ini of FasterTransformer says of a model, in the words of transformers' config.json.

Settings that would make the model compute something else than the families here are refused by
key and value. `fastertransformer` checks its files against the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ftjob.checkpoint.index import Known
from ftjob.checkpoint.ini import Section
from ftjob.errors import CheckpointError

# config.json's keys and values, the word for the weights' type, and remarks for the report
Model = tuple[dict[str, Any], str, dict[str, str]]

# GPT's flags and what the family computes; absent, they have these values in FasterTransformer too
_GPT_FLAGS: Mapping[str, bool] = MappingProxyType(
    {
        "has_positional_encoding": True,
        "has_pre_decoder_layernorm": False,
        "has_post_decoder_layernorm": True,
        "use_attention_linear_bias": False,
        "has_adapters": False,
    }
)
_GPT_ACTIVATIONS = MappingProxyType({"gelu": "gelu_new", "relu": "relu"})
_OLD_EPS, _TRUE_EPS = 1e-6, 1e-5


def gpt_config(section: Section, known: Known, exact: bool) -> Model:
    """The config of a GPT from [gpt]; `exact` says that ftjob wrote it, as it is.

    The old converters wrote layernorm_eps=1e-6, or nothing, which meant 1e-6; the models they
    converted, Megatron's and GPT-2, were trained with 1e-5, which is what runs here. Rows of the
    embedding that the tokenizer has no words for are Megatron's padding.

    Raises:
        CheckpointError: naming file, key, value and rule.
    """
    for key, usual in _GPT_FLAGS.items():
        if section.flag(key, usual) is not usual:
            raise section.refuse(key, f"is not supported, only {usual}")
    _refuse_tasks(section)
    if section.text("layernorm_type", "pre_layernorm") != "pre_layernorm":
        raise section.refuse("layernorm_type", "is not supported, only pre_layernorm")
    activation = section.text("activation_type", "Gelu").lower()
    if activation not in _GPT_ACTIVATIONS:
        raise section.refuse("activation_type", "is not supported; known: Gelu, Relu")
    heads, size = section.size("head_num"), section.size("size_per_head")
    eps, remarks = section.number("layernorm_eps", _OLD_EPS), {}
    if eps == _OLD_EPS and not exact:
        eps = _TRUE_EPS
        says = "layernorm_eps=1e-06" if "layernorm_eps" in section.values else "no layernorm_eps"
        remarks["layernorm eps"] = (
            f"1e-05, which such models are trained with; config.ini says {says}"
        )
    vocab = section.size("vocab_size")
    true = known.vocab or (None if exact else known.padded(vocab)) or vocab
    if true < vocab:
        remarks["padding of the vocabulary"] = f"{vocab - true} rows, never emitted"
        vocab = true
    elif vocab % 128 == 0 and not (exact or known.vocab or known.padded(vocab)):
        remarks["padding of the vocabulary"] = (
            f"unknown: all {vocab} rows that config.ini states can be emitted; model.arch.vocab or "
            "the tokenizer says which stand for tokens"
        )
    config: dict[str, Any] = {
        "model_type": "gpt2",
        "n_layer": section.size("num_layer"),
        "n_head": heads,
        "n_embd": heads * size,
        "n_inner": section.size("inter_size", 4 * heads * size),
        "n_positions": section.size("max_pos_seq_len"),
        "vocab_size": vocab,
        "activation_function": _GPT_ACTIVATIONS[activation],
        "layer_norm_epsilon": eps,
    }
    for ours, theirs in (("bos_token_id", "start_id"), ("eos_token_id", "end_id")):
        if section.text(theirs, "None") != "None":
            config[ours] = section.size(theirs, least=0)
        elif ours == "eos_token_id":
            config[ours] = known.end
    return config, section.text("weight_data_type", "fp32"), remarks


def stored_vocab(sections: Mapping[str, Section]) -> int:
    """The rows of the embedding's file, padding included."""
    return sections["gpt" if "gpt" in sections else "encoder"].size("vocab_size")


# Keys that both stacks must state alike, and those taken over as they are where they are there.
_T5_SIZES = ("num_heads", "d_kv", "d_model", "d_ff", "vocab_size")
_T5_BUCKETS = "relative_attention_num_buckets_or_max_pos_seq_len"
_T5_PLAIN = (
    *("relative_attention_max_distance", "layer_norm_epsilon", "feed_forward_proj"),
    *("dense_act_fn", "is_gated_act", "tie_word_embeddings", "scale_decoder_outputs"),
    *("decoder_start_token_id", "eos_token_id", "pad_token_id"),
)


def t5_config(sections: Mapping[str, Section]) -> Model:
    """The config of a T5 from [encoder], [decoder] and [structure].

    Raises:
        CheckpointError: naming file, key, value and rule.
    """
    encoder, decoder = sections["encoder"], sections["decoder"]
    structure = sections.get("structure", Section(encoder.file, "structure", {}))
    if structure.flag("t5_with_bias", False):
        raise structure.refuse("t5_with_bias", "is not supported, only false: T5 has no biases")
    if structure.text("position_embedding_type", "relative") != "relative":
        raise structure.refuse("position_embedding_type", "is not supported, only relative")
    if structure.size("ia3_num_tasks", 0, least=0):
        raise structure.refuse("ia3_num_tasks", "is not supported, only 0")
    for section in (encoder, decoder):
        _refuse_tasks(section)
        if section.size("adapter_inter_size", 0, least=0):
            raise section.refuse("adapter_inter_size", "is not supported, only 0")
    config: dict[str, Any] = {"model_type": decoder.text("model_type", "t5")}
    if config["model_type"] not in ("t5", "mt5"):
        raise decoder.refuse("model_type", "is not supported; known: t5, mt5")
    for key in (*_T5_SIZES, _T5_BUCKETS):
        value = encoder.size(key)
        if decoder.size(key) != value:
            raise decoder.refuse(key, f"differs from the encoder's {value}")
        config[key] = value
    config["relative_attention_num_buckets"] = config.pop(_T5_BUCKETS)
    config |= {
        "num_layers": encoder.size("num_layers"),
        "num_decoder_layers": decoder.size("num_layers"),
    }
    for key in _T5_PLAIN:
        if key in decoder.values and decoder.plain(key) is not None:
            config[key] = decoder.plain(key)
    proj, act = (str(config.get(k, "")) for k in ("feed_forward_proj", "dense_act_fn"))
    if proj and act and proj.removeprefix("gated-").split("_")[0] != act.split("_")[0]:
        # FasterTransformer read the first, transformers goes by the second, which is derived
        raise decoder.refuse("feed_forward_proj", f"disagrees with dense_act_fn={act}")
    if (tasks := decoder.mapping("task_specific_params")) is not None:
        config["task_specific_params"] = tasks
    _set_gate(config, structure)
    weights = encoder.text("weight_data_type", "fp32")
    if decoder.text("weight_data_type", "fp32") != weights:
        raise decoder.refuse("weight_data_type", f"differs from the encoder's {weights}")
    return config, weights, {}


def _set_gate(config: dict[str, Any], structure: Section) -> None:
    """Whether the MLP is gated: [structure] decides, for some releases of transformers dumped
    feed_forward_proj=gelu for gated models."""
    wanted = str(config.get("feed_forward_proj", "relu"))
    gated = structure.flag("use_gated_activation", wanted.startswith("gated-"))
    if not gated and (wanted.startswith("gated-") or config.get("is_gated_act")):
        raise structure.refuse(
            "use_gated_activation", f"disagrees with feed_forward_proj={wanted} of [decoder]"
        )
    if gated and not wanted.startswith("gated-"):
        config["feed_forward_proj"] = f"gated-{wanted}"
        config["is_gated_act"] = True


def _refuse_tasks(section: Section) -> None:
    for key in ("num_tasks", "prompt_learning_type"):
        if section.size(key, 0, least=0):
            raise CheckpointError(
                f"{section.file}: [{section.name}] {key}={section.values[key]}: prompt tables are "
                "not read, only the model itself"
            )
