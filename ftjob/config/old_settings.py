"""FasterTransformer's settings files in ftjob's overrides: config.pbtxt of its Triton backend, and
the config.ini and gpt_config.ini of its folders and examples.

`convert.settings=FILE` prints what `translate` says; the README's table old -> new is rendered
from the tables here and in `old_names`. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ftjob.config.old_names import OLD_NAMES

_FROM_FILES = "read from the checkpoint"
_NOT_READ = "has no meaning here"
_NO_TABLES = "prompt tables are not read"
_NO_SESSIONS = "there are no sessions: a row is whole"
_NO_EXPERTS = "mixtures of experts are not read"
_FLAG = "a flag of its converters"
# What a settings file says besides, and what has no new name: name -> (key or "", remark).
MORE_NAMES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "model_type": ("model.family", "GPT is model=gpt2, T5 is model=t5; others are not read"),
        "model_dir": ("model.checkpoint", "any folder, not one per tensor size"),
        "default_model_filename": ("model.checkpoint", "below the model's version folder"),
        "num_layers": ("model.arch.layers", "T5; of each stack"),
        "num_heads": ("model.arch.heads", "T5"),
        "max_pos_seq_len": ("model.arch.positions", ""),
        "max_encoder_seq_len": ("plan.input_len", "T5; a run takes each row's own length"),
        "max_decoding_seq_len": ("", "T5; sized a buffer; a row's bound is decode.max_new_tokens"),
        "request_batch_size": ("batch.max_tokens", "batches are counted in tokens, not rows"),
        "top_k": ("decode.top_k", "1, and 0 with top_p 0, are greedy"),
        "top_p": ("decode.top_p", "0 is greedy without top_k; with one it means 1"),
        "temperature": ("decode.temperature", "FasterTransformer divides before the penalties"),
        "repetition_penalty": ("decode.repetition_penalty", "over prompt and new tokens"),
        "presence_penalty": ("decode.presence_penalty", "not both penalties"),
        "min_length": ("decode.min_length", ""),
        "beam_search_diversity_rate": (
            "decode.beam_search_diversity_rate",
            "added to a candidate's score times its rank, so lower ranks gain; the paper it cites "
            "(arXiv 1611.08562) subtracts it",
        ),
        "top_p_decay": ("decode.top_p_decay", ""),
        "top_p_min": ("decode.top_p_min", ""),
        "return_log_probs": ("decode.token_logprobs", "cum_logprob is always reported"),
        "start_id": ("decode.start_id", f"{_FROM_FILES} where it is not set"),
        "end_id": ("decode.end_id", f"{_FROM_FILES} where it is not set"),
        "decoder_start_token_id": ("", _FROM_FILES),
        "eos_token_id": ("", _FROM_FILES),
        "layernorm_eps": ("", f"{_FROM_FILES}; the old converters' 1e-6 runs as 1e-5"),
        "weight_data_type": ("", f"{_FROM_FILES}; model.dtype may differ; convert.dtype writes it"),
        "layernorm_type": ("", f"{_FROM_FILES}; only pre_layernorm"),
        "activation_type": ("", f"{_FROM_FILES}; Gelu or Relu"),
        "model_variant": ("", "OPT and BLOOM are not read"),
        "enable_custom_all_reduce": ("", f"{_NOT_READ}: sums are one tree, always the same"),
        "sparse": ("", "sparse weights are not read"),
        "is_sparse": ("", "sparse weights are not read"),
        "is_remove_padding": ("", "rows are always packed without padding"),
        "remove_padding": ("", "rows are always packed without padding"),
        "shared_contexts_ratio": ("", _NOT_READ),
        "context_log_probs": ("decode.prompt_logprob", ""),
        "is_return_context_embeddings": ("", "not reported"),
        "context_embeddings": ("", "not reported"),
        "session_len": ("", _NO_SESSIONS),
        "START": ("", _NO_SESSIONS),
        "END": ("", _NO_SESSIONS),
        "continue_gen": ("", _NO_SESSIONS),
        "memory_len": ("", "there is no circular cache"),
        "decoupled": ("", "there is no streaming: answers are rows of samples.jsonl"),
        "input_ids": ("", "a row's prompt_ids, or made of its text"),
        "INPUT_ID": ("", "a row's prompt_ids, or made of its text"),
        "input_lengths": ("", "each row has its own length"),
        "sequence_length": ("", "each row has its own length"),
        "REQUEST_INPUT_LEN": ("", "each row has its own length"),
        "REQUEST_OUTPUT_LEN": ("decode.max_new_tokens", "a row's own max_new_tokens comes first"),
        "num_tasks": ("", _NO_TABLES),
        "task_name": ("", _NO_TABLES),
        "prompt_length": ("", _NO_TABLES),
        "prompt_learning_type": ("", _NO_TABLES),
        "prompt_learning_start_id": ("", _NO_TABLES),
        "prompt_learning_task_name_ids": ("", _NO_TABLES),
        "request_prompt_embedding": ("", _NO_TABLES),
        "request_prompt_lengths": ("", _NO_TABLES),
        "request_prompt_type": ("", _NO_TABLES),
        "ia3_tasks": ("", "IA3 is not read"),
        "ia3_num_tasks": ("", "IA3 is not read"),
        "has_adapters": ("", "adapters are not read"),
        "adapter_inter_size": ("", "adapters are not read"),
        "adapter_norm_position": ("", "adapters are not read"),
        "gpt_with_moe": ("", _NO_EXPERTS),
        "expert_num": ("", _NO_EXPERTS),
        "moe_k": ("", _NO_EXPERTS),
        "moe_layers": ("", _NO_EXPERTS),
        "rotary_embedding": ("", "GPT-J and GPT-NeoX are not read"),
        "use_gptj_residual": ("", "GPT-J and GPT-NeoX are not read"),
        "has_positional_encoding": ("", f"{_FROM_FILES}; only true"),
        "has_pre_decoder_layernorm": ("", f"{_FROM_FILES}; only false"),
        "has_post_decoder_layernorm": ("", f"{_FROM_FILES}; only true"),
        "use_attention_linear_bias": ("", f"{_FROM_FILES}; only false"),
        "t5_with_bias": ("", f"{_FROM_FILES}; only false"),
        "use_gated_activation": ("", _FROM_FILES),
        "position_embedding_type": ("", f"{_FROM_FILES}; only relative"),
        "tie_word_embeddings": ("", _FROM_FILES),
        "feed_forward_proj": ("", _FROM_FILES),
        "relative_attention_num_buckets_or_max_pos_seq_len": ("", _FROM_FILES),
        "instance_group": ("parallel.data", "replicas, a process for each node; auto"),
        "dynamic_batching": ("", "the whole data set is at hand: nothing waits for requests"),
        "in_file": ("model.checkpoint", _FLAG),
        "saved_dir": ("convert.out", _FLAG),
        "infer_gpu_num": ("convert.tensor", _FLAG),
        "inference_tensor_para_size": ("convert.tensor", _FLAG),
    }
)
_DTYPES = MappingProxyType({"fp32": "f32", "fp16": "f16", "bf16": "bf16"})
# What model_type is in config.pbtxt, and in the config.ini of a T5, a dump of transformers' keys.
_FAMILIES = MappingProxyType({"GPT": "gpt2", "T5": "t5", "t5": "t5", "mt5": "t5"})
_FLAGS = ("decode.token_logprobs", "decode.prompt_logprob")
_BEAMS_ONLY = ("decode.length_penalty", "decode.beam_search_diversity_rate")
# Options by which the two conventions come to different answers: README's table of options.
BY_CONVENTION = (
    *("decode.beams", "decode.top_p", "decode.temperature", "decode.repetition_penalty"),
    *("decode.presence_penalty", *_BEAMS_ONLY),
)
FT_CONVENTION = "decode.convention=ft"
# Keys whose value is a number that means the same; the neutral one needs no override.
_NUMBERS: Mapping[str, float | None] = MappingProxyType(
    {
        **{"parallel.tensor": 1, "parallel.pipeline": 1, "decode.max_new_tokens": None},
        **{"decode.beams": 1, "decode.length_penalty": None, "plan.input_len": None},
        **{"decode.temperature": 1, "decode.repetition_penalty": 1, "decode.presence_penalty": 0},
        **{"decode.min_length": 0, "decode.beam_search_diversity_rate": 0, "decode.seed": None},
        **{"decode.top_p_decay": 1, "decode.top_p_min": None, "decode.top_p_reset": -1},
        **{"decode.start_id": None, "decode.end_id": None},
    }
)


@dataclass(frozen=True)
class Line:
    """One setting: as it was, the override for it if one is needed, and what to know."""

    name: str
    value: str
    override: str | None
    remark: str


def names() -> dict[str, tuple[str, str]]:
    """Every FasterTransformer parameter that is known: name -> (key or "", remark)."""
    return {**MORE_NAMES, **OLD_NAMES}


def translate(settings: Mapping[str, str]) -> list[Line]:
    """A line for each setting, in order."""
    lines = []
    for name, value in settings.items():
        key, remark = names().get(name, ("", "no parameter of FasterTransformer's"))
        override, more = _override(name, value, key, settings)
        lines.append(Line(name, value, override, "; ".join(filter(None, (more, remark)))))
    return lines


def _override(
    name: str, value: str, key: str, settings: Mapping[str, str]
) -> tuple[str | None, str]:
    """The override of one setting, and a remark on its value."""
    if name == "model_type":
        family = _FAMILIES.get(value)
        return (f"model={family}", "") if family else (None, "no family here")
    if name in ("data_type", "is_half"):
        dtype = {"1": "f16", "0": "f32"}.get(value) if name == "is_half" else _DTYPES.get(value)
        return (f"model.dtype={dtype}", "") if dtype else (None, "no dtype here")
    if name == "int8_mode":
        word = {"0": "float", "1": "int8"}.get(value)
        return (f"model.weights={word}", "") if word else (None, "activations in int8 are not read")
    if key == "model.checkpoint" or name == "model_name":
        return f"{key}={value}", ""
    if key.startswith("model.arch.") or key == "batch.max_tokens":
        return None, "the checkpoint says it" if "arch" in key else "auto"
    if key in ("decode.top_k", "decode.top_p"):
        return _nucleus(name, value, key, settings)
    if key in _FLAGS:
        return f"{key}={'true' if value.lower() in ('true', '1') else 'false'}", ""
    if key not in _NUMBERS:
        return None, ""
    number = _number(value)
    if number is None:
        return None, "is no number"
    if key in _BEAMS_ONLY and not _beams(settings):
        return None, "for beams only"
    if key in ("decode.top_p_decay", "decode.top_p_reset") and _top(settings, name)[0]:
        return None, "for rows without top_k"
    return (None, "as by default") if number == _NUMBERS[key] else (f"{key}={value}", "")


def _nucleus(
    name: str, value: str, key: str, settings: Mapping[str, str]
) -> tuple[str | None, str]:
    """top_k and top_p, which decide together whether anything is drawn."""
    k, p = _top(settings, name)
    if k is None or p is None:
        return None, "is no number"
    if _beams(settings):
        return None, "a beam search draws nothing"
    if k == 1 or (k == 0 and p == 0):
        return None, "greedy, as by default"
    if key == "decode.top_p" and p == 0:
        return f"{key}=1.0", ""
    return f"{key}={value}", ""


def _top(settings: Mapping[str, str], name: str) -> tuple[float | None, float | None]:
    """top_k and top_p by the names of the same time as `name`."""
    prefix = "runtime_" if name.startswith("runtime_") or "runtime_top_k" in settings else ""
    k, p = (_number(settings.get(f"{prefix}top_{n}", "0")) for n in "kp")
    return k, p


def _beams(settings: Mapping[str, str]) -> bool:
    return (_number(settings.get("beam_width", "1")) or 1) > 1


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def render_names() -> str:
    """The README's table: FasterTransformer's name, ftjob's key, what changed."""
    lines = ["| FasterTransformer | ftjob | remark |", "| --- | --- | --- |"]
    for old, (key, remark) in {**OLD_NAMES, **names()}.items():
        lines.append(f"| `{old}` | {f'`{key}`' if key else '-'} | {remark} |")
    return "\n".join(lines) + "\n"
