"""FasterTransformer's settings files as overrides: what is printed composes and means the same,
what has no counterpart is said with its reason, and files of no such kind are refused by line.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from ftjob.commands.settings import read_settings, settings_page
from ftjob.config import JobConfig
from ftjob.config.compose import compose
from ftjob.config.keys import keys_of
from ftjob.config.old_names import OLD_NAMES
from ftjob.config.old_settings import names, translate
from ftjob.config.pbtxt import Message, parse_pbtxt
from ftjob.errors import UNREADABLE, CheckpointError

DECLARED = [k.name for k in keys_of(JobConfig)]
GPT: dict[str, str] = {
    **{"top_k": "1", "top_p": "0.0", "tensor_para_size": "8", "pipeline_para_size": "2"},
    **{"max_input_len": "512", "max_seq_len": "528", "is_half": "1", "head_num": "16"},
    **{"size_per_head": "64", "inter_size": "4096", "vocab_size": "50304", "start_id": "50256"},
    **{"end_id": "50256", "decoder_layers": "24", "model_name": "gpt3_345M", "beam_width": "4"},
    **{"temperature": "1.0", "repetition_penalty": "1.0", "len_penalty": "1.0"},
    **{"beam_search_diversity_rate": "0.0", "int8_mode": "1", "model_type": "GPT"},
    "model_checkpoint_path": "/data/ft models/8-gpu",
}


def pbtxt(parameters: dict[str, str]) -> str:
    """A model's file as the backend's samples are laid out."""
    held = "".join(
        f'parameters {{\n  key: "{k}"\n  value: {{\n    string_value: "{v}"\n  }}\n}}\n'
        for k, v in parameters.items()
    )
    return f"""# a comment
name: "fastertransformer"
backend: "fastertransformer"
default_model_filename: "gpt3_345M"
max_batch_size: 128
model_transaction_policy {{ decoupled: False }}
dynamic_batching {{ max_queue_delay_microseconds: 50000 }}
input [
  {{ name: "INPUT_ID" data_type: TYPE_UINT32 dims: [ -1, -1 ] }},
  {{ name: "REQUEST_INPUT_LEN", data_type: TYPE_UINT32, dims: [ 1 ] }}
]
instance_group [ {{ count: 1 kind : KIND_CPU }} ]
{held}"""


def overrides(page: str) -> list[str]:
    """The overrides of the command line that opens a page."""
    words = shlex.split(page.splitlines()[0])
    assert words[:3] == ["python", "-m", "ftjob"]
    return words[3:]


def row(page: str, name: str) -> str:
    (found,) = (line for line in page.splitlines()[3:] if line.startswith(f"{name}="))
    return found


def test_pbtxt(tmp_path: Path) -> None:
    file = tmp_path / "config.pbtxt"
    file.write_text(pbtxt(GPT))
    page = settings_page(file)
    assert overrides(page) == [
        *(
            "model=gpt2",
            "parallel.tensor=8",
            "parallel.pipeline=2",
            "plan.input_len=512",
            "model.dtype=f16",
        ),
        *("decode.start_id=50256", "decode.end_id=50256"),
        *("model.name=gpt3_345M", "decode.beams=4", "decode.length_penalty=1.0"),
        *("model.weights=int8", "model.checkpoint=/data/ft models/8-gpu", "decode.convention=ft"),
    ]
    config = compose([*overrides(page), "dataset.mode=generate"])
    assert (config.parallel.tensor, config.parallel.pipeline) == (8, 2)
    assert (config.model.checkpoint, config.model.weights) == ("/data/ft models/8-gpu", "int8")
    assert (config.decode.beams, config.model.dtype) == (4, "f16")
    for name in [*GPT, "max_batch_size", "decoupled", "instance_group", "dynamic_batching"]:
        assert row(page, name)
    assert "counted the padded prompt too" in row(page, "len_penalty")
    assert "greedy" in row(page, "top_p")
    assert page.endswith("\nAdd the rows to run: dataset=prompts dataset.path=FILE.\n")


def test_gpt_config_ini(tmp_path: Path) -> None:
    """Only the section that model_name chooses counts; comments behind values are none of them."""
    file = tmp_path / "gpt_config.ini"
    file.write_text(
        "[ft_instance_hyperparameter]\nmax_batch_size=8 ; buffer\nbeam_width=1 ; beams\n"
        "top_k=1\ntop_p=0\ndata_type=bf16\ntensor_para_size=2\n; model_name=other\n"
        "model_name=megatron_345M\nmodel_dir=../c-model/345m/1-gpu/\nlen_penalty=0.6\n"
        "[request]\nrequest_output_len=32    ; tokens\nreturn_log_probs=true\n"
        "[megatron_345M]\nhead_num=16\n[gpt_175B]\nhead_num=96\n"
    )
    page = settings_page(file)
    assert overrides(page) == [
        *("model=gpt2", "model.dtype=bf16", "parallel.tensor=2", "model.name=megatron_345M"),
        *("model.checkpoint=../c-model/345m/1-gpu/", "decode.max_new_tokens=32"),
        "decode.token_logprobs=true",
    ]
    assert "for beams only" in row(page, "len_penalty")
    assert "head_num=16" in page
    assert "head_num=96" not in page
    compose(overrides(page))


def test_settings_that_name_no_weights_ask_for_them(tmp_path: Path) -> None:
    file = tmp_path / "gpt_config.ini"
    file.write_text("[gpt]\nmodel_name=gpt\nhead_num=12\n")
    wanted = "model.checkpoint=PATH dataset=prompts dataset.path=FILE"
    assert settings_page(file).endswith(f"\nAdd the weights and the rows to run: {wanted}.\n")


EXAMPLES: dict[str, dict[str, str]] = {
    "beams of the example, which names a nucleus too": {
        **{"beam_width": "4", "top_k": "0", "top_p": "0.5", "temperature": "0.7"},
        **{"len_penalty": "0.5", "beam_search_diversity_rate": "0.3", "repetition_penalty": "2.0"},
    },
    "a temperature of the likeliest": {"top_k": "1", "top_p": "0", "temperature": "0.5"},
    "drawn": {
        **{"top_k": "40", "top_p": "0.9", "temperature": "0.7", "len_penalty": "1.0"},
        **{"beam_search_diversity_rate": "0.3", "top_p_decay": "0.9", "top_p_reset_ids": "5"},
    },
}


@pytest.mark.parametrize("settings", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_what_is_printed_runs_under_the_old_rules(tmp_path: Path, settings: dict[str, str]) -> None:
    """Settings that FasterTransformer took together, though some of them did nothing there."""
    file = tmp_path / "gpt_config.ini"
    held = "".join(f"{k}={v}\n" for k, v in settings.items())
    file.write_text(f"[ft_instance_hyperparameter]\nmodel_dir=x\n{held}")
    page = settings_page(file)
    config = compose([*overrides(page), "dataset.mode=generate"])
    assert config.decode.convention == "ft"
    assert config.decode.temperature == float(settings["temperature"])
    assert config.decode.beams == int(settings.get("beam_width", "1"))


def test_parameters_of_the_requests_and_of_other_models_are_known() -> None:
    """Those of the inputs, of sessions, of experts and of GPT-NeoX: named, not called unknown."""
    every = (
        *("input_ids", "input_lengths", "sequence_length", "request_prompt_embedding"),
        *("request_prompt_lengths", "request_prompt_type", "START", "END", "continue_gen"),
        *("INPUT_ID", "REQUEST_INPUT_LEN", "REQUEST_OUTPUT_LEN", "task_name", "prompt_length"),
        *("gpt_with_moe", "expert_num", "moe_k", "moe_layers", "adapter_norm_position"),
        *("rotary_embedding", "use_gptj_residual", "has_positional_encoding"),
        *("has_pre_decoder_layernorm", "has_post_decoder_layernorm", "use_attention_linear_bias"),
        *("in_file", "saved_dir", "infer_gpu_num", "inference_tensor_para_size"),
    )
    assert [name for name in every if name not in names()] == []


def test_config_ini_beside_its_weights_names_the_folder(tmp_path: Path) -> None:
    file = tmp_path / "config.ini"
    file.write_text("[gpt]\nhead_num=16\n")
    assert overrides(settings_page(file)) == ["model=gpt2"]
    (tmp_path / "model.wte.bin").touch()
    page = settings_page(file)
    assert overrides(page) == ["model=gpt2", f"model.checkpoint={tmp_path}"]
    assert "weights lie beside the file" in page


def test_config_ini_of_folders(tmp_path: Path) -> None:
    file = tmp_path / "config.ini"
    file.write_text("[gpt]\nhead_num=16\nlayernorm_eps=1e-6\nweight_data_type=fp16\n")
    page = settings_page(file)
    assert overrides(page) == ["model=gpt2"]
    assert "runs as 1e-5" in row(page, "layernorm_eps")
    file.write_text(
        "[encoder]\nd_model=8\n_name_or_path=x\na=1\n[decoder]\nd_model=8\n[structure]\n"
    )
    page = settings_page(file)
    assert "2 more keys are a dump" in page
    assert overrides(page) == ["model=t5"]
    assert "the checkpoint says it" in row(page, "d_model")


VALUES: dict[str, tuple[dict[str, str], str, str | None, str]] = {
    "fp32": ({"data_type": "fp32"}, "data_type", "model.dtype=f32", ""),
    "another dtype": ({"data_type": "fp8"}, "data_type", None, "no dtype here"),
    "full": ({"is_half": "0"}, "is_half", "model.dtype=f32", ""),
    "float weights": ({"int8_mode": "0"}, "int8_mode", "model.weights=float", ""),
    "smooth": ({"int8_mode": "2"}, "int8_mode", None, "activations in int8 are not read"),
    "t5": ({"model_type": "T5"}, "model_type", "model=t5", ""),
    "mt5 of a folder": ({"model_type": "mt5"}, "model_type", "model=t5", ""),
    "a rate without beams": (
        {"beam_search_diversity_rate": "0.3", "beam_width": "1"},
        *("beam_search_diversity_rate", None, "for beams only"),
    ),
    "a nucleus under beams": (
        {"top_k": "0", "top_p": "0.5", "beam_width": "4"},
        *("top_p", None, "a beam search draws nothing"),
    ),
    "decay with a top_k": (
        {"runtime_top_k": "4", "top_p_decay": "0.9"},
        *("top_p_decay", None, "for rows without top_k"),
    ),
    "reset": ({"top_p_reset_ids": "7"}, "top_p_reset_ids", "decode.top_p_reset=7", ""),
    "no reset": ({"top_p_reset_ids": "-1"}, "top_p_reset_ids", None, "as by default"),
    "prompt": (
        {"is_return_context_cum_log_probs": "1"},
        *("is_return_context_cum_log_probs", "decode.prompt_logprob=true", ""),
    ),
    "soft prompt": ({"request_prompt_type": "1"}, "request_prompt_type", None, "prompt tables"),
    "gpt-j": ({"model_type": "GPT-J"}, "model_type", None, "no family here"),
    "no number": ({"tensor_para_size": "x"}, "tensor_para_size", None, "is no number"),
    "as by default": ({"tensor_para_size": "1"}, "tensor_para_size", None, "as by default"),
    "unknown": ({"zzz": "1"}, "zzz", None, "no parameter of FasterTransformer's"),
    "greedy": ({"top_k": "0", "top_p": "0.0"}, "top_k", None, "greedy"),
    "seed": ({"random_seed": "0"}, "random_seed", "decode.seed=0", "draw different numbers"),
    "diversity": (
        {"beam_search_diversity_rate": "0.3", "beam_width": "4"},
        "beam_search_diversity_rate",
        "decode.beam_search_diversity_rate=0.3",
        "the paper it cites (arXiv 1611.08562) subtracts it",
    ),
}


@pytest.mark.parametrize(
    ("settings", "name", "override", "remark"), VALUES.values(), ids=VALUES.keys()
)
def test_values(settings: dict[str, str], name: str, override: str | None, remark: str) -> None:
    lines = {line.name: line for line in translate(settings)}
    assert lines[name].override == override
    assert remark in lines[name].remark


def test_a_nucleus_within_the_top_k() -> None:
    """top_p 0 beside a top_k means all of their mass."""
    drawn = {"top_k": "40", "top_p": "0.0", "temperature": "0.7", "random_seed": "3"}
    assert [line.override for line in translate(drawn)] == [
        "decode.top_k=40",
        "decode.top_p=1.0",
        "decode.temperature=0.7",
        "decode.seed=3",
    ]


def test_every_old_name_is_known_and_every_override_has_a_key() -> None:
    assert names().keys() >= OLD_NAMES.keys()
    assert {"runtime_top_k", "random_seed", "enable_custom_all_reduce"} <= names().keys()
    for line in translate(dict.fromkeys(names(), "2")):
        if line.override:
            assert line.override.partition("=")[0] in {*DECLARED, "model"}


def test_parser() -> None:
    found = parse_pbtxt(
        "a: 1 b { c: 'x\\'y' d: [1, 2] } b < c: -2.5e3 >; e: [ { f: T }, { f: U } ]"
    )
    assert found.text("a") == "1"
    assert found.all("b") == [
        Message([("c", "x'y"), ("d", "1"), ("d", "2")]),
        Message([("c", "-2.5e3")]),
    ]
    assert [m.text("f") for m in found.all("e") if isinstance(m, Message)] == ["T", "U"]


BROKEN: dict[str, Any] = {
    "no value": ("a:\n", "line 2: expected a value, found the end"),
    "not closed": ("a {\n b: 1\n", "line 3: expected a field's name, found ''"),
    "closed twice": ("a { }\n}", "line 2: expected a field's name, found '}'"),
    "half a string": ('a: "x\n', "line 1: '\"' is not known here"),
    "a sign": ("a: 1 $", "line 1: '$' is not known here"),
    "a list of nothing": ("a: [1 2]", "expected ,, found '2'"),
    "deep": ("a { " * 100, "nested too deeply"),
}


@pytest.mark.parametrize(("text", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_files_are_refused_by_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "config.pbtxt"
    file.write_text(text)
    with pytest.raises(CheckpointError) as refused:
        read_settings(file)
    assert refused.value.code == UNREADABLE
    assert str(refused.value).startswith(f"{file}: is no config.pbtxt: ")
    assert words in str(refused.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name, text in (("a.ini", "[x]\na=1"), ("b.ini", "x"), ("c.pbtxt", None)):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(CheckpointError, match=name):
            read_settings(tmp_path / name)
