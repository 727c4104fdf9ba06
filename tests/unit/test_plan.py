"""The plan's arithmetic: who sits where in the mesh, which layers a stage takes, how many rows fit,
and every refusal by name with its numbers; also that a plan far past this machine is instant and
needs no torch.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest

from ftjob.checkpoint.shard import TensorRule, place_all
from ftjob.config import JobConfig, build
from ftjob.errors import CONFIG_REFUSED, ConfigError
from ftjob.model.arch import Arch
from ftjob.model.families import family
from ftjob.plan import (
    Machine,
    Plan,
    check_length,
    check_model_split,
    layer_spans,
    make_plan,
    stage_tensors,
)

ARCH = Arch("gpt2", 10, 12, 4, 48, 192, 101, 32, 1e-5, "gelu_tanh", True)


def machine(*devices: int, memory: int = 10**9) -> Machine:
    return Machine(devices, "cpu", memory, "test")


def config(
    tensor: int = 1, pipeline: int = 1, data: str | int = "auto", **groups: dict[str, Any]
) -> JobConfig:
    split = {"tensor": tensor, "pipeline": pipeline, "data": data}
    return build({"model": {"checkpoint": "PATH"}, "parallel": split} | groups)


def plan(wanted: JobConfig, machines: Machine, arch: Arch = ARCH) -> Plan:
    return make_plan(wanted, arch, family(arch.family).tensors(arch), machines)


def test_mesh_runs_over_tensor_then_pipeline_then_data() -> None:
    made = plan(config(2, 3, 2), machine(4, 4, 4))
    seats = [(d.index, d.rank, d.local, d.tensor, d.pipeline, d.data) for d in made.devices]
    assert seats == [
        (0, 0, 0, 0, 0, 0),
        (1, 0, 1, 1, 0, 0),
        (2, 0, 2, 0, 1, 0),
        (3, 0, 3, 1, 1, 0),
        (4, 1, 0, 0, 2, 0),
        (5, 1, 1, 1, 2, 0),
        (6, 1, 2, 0, 0, 1),
        (7, 1, 3, 1, 0, 1),
        (8, 2, 0, 0, 1, 1),
        (9, 2, 1, 1, 1, 1),
        (10, 2, 2, 0, 2, 1),
        (11, 2, 3, 1, 2, 1),
    ]
    assert [d.local for d in made.of_rank(1)] == [0, 1, 2, 3]
    assert [d.index for d in made.of_rank(2)] == [8, 9, 10, 11]
    assert {(d.pipeline, d.first_layer, d.last_layer) for d in made.devices} == {
        (0, 0, 4),
        (1, 4, 7),
        (2, 7, 10),
    }
    assert all(d.first == (d.pipeline == 0) for d in made.devices)
    assert all(d.last == (d.pipeline == 2) for d in made.devices)


@pytest.mark.parametrize(
    ("layers", "stages"), [(1, 1), (2, 1), (7, 2), (7, 5), (7, 7), (96, 5), (96, 7), (96, 96)]
)
def test_spans_cover_the_layers_evenly(layers: int, stages: int) -> None:
    spans = layer_spans(layers, stages)
    assert [i for a, b in spans for i in range(a, b)] == list(range(layers))
    sizes = [b - a for a, b in spans]
    assert len(sizes) == stages
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_automatic_replicas_take_what_is_left() -> None:
    assert plan(config(2), machine(4, 4)).data == 4
    assert plan(config(2, 2), machine(4)).data == 1
    assert plan(config(2, 2), machine(2, 2)).data == 1  # a replica over two ranks
    assert plan(config(data=3), machine(3)).data == 3


def refused(wanted: JobConfig, machines: Machine) -> str:
    with pytest.raises(ConfigError) as error:
        plan(wanted, machines)
    assert error.value.code == CONFIG_REFUSED
    return str(error.value)


def test_heads_that_do_not_divide_are_refused() -> None:
    message = refused(config(5), machine(5))
    assert message.startswith("parallel.tensor=5: the model's 12 attention heads do not divide")
    assert "Legal: 1, 2, 3, 4, 6, 12." in message


def test_mlp_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tensor=4: the model's 198 MLP columns.*1, 2, 3, 6\."):
        check_model_split(replace(ARCH, ffn=198), 4, 1)


def test_more_stages_than_layers_are_refused() -> None:
    message = refused(config(1, 11), machine(11))
    assert message.startswith("parallel.pipeline=11: the model has 10 layers")
    assert "Legal: 1 to 10." in message


def test_world_that_is_no_product_is_refused() -> None:
    message = refused(config(2, 2), machine(3, 3))
    for words in ("parallel.tensor=2 x parallel.pipeline=2 = 4", "6 devices (2 ranks of 3)"):
        assert words in message
    assert "Legal products: 1, 2, 3, 6; or set cluster.devices_per_node=2 or a multiple" in message
    assert "cluster.devices_per_node=3 or" in refused(config(3), machine(1, 1))
    assert "1 device (1 rank of 1)" in refused(config(2), machine(1))
    assert "Legal products: 1" in refused(config(2), machine(1))


@pytest.mark.parametrize("data", [1, 3, 4])
def test_replicas_that_do_not_fill_the_world_are_refused(data: int) -> None:
    message = refused(config(2, 1, data), machine(2, 2))
    assert f"parallel.data={data} = {2 * data}: the job has 4 devices (2 ranks of 2)" in message
    assert "parallel.data=auto" in message


def test_unequal_nodes_serve_replicas_that_fit_one_node() -> None:
    made = plan(config(2), machine(4, 2))
    assert [(d.rank, d.local, d.data) for d in made.devices if d.tensor == 0] == [
        (0, 0, 0),
        (0, 2, 1),
        (1, 0, 2),
    ]
    message = refused(config(2), machine(3, 1))
    assert "cluster.devices_per_node=[3, 1]: node 0 has 3 devices" in message
    assert "a replica takes 2" in message


def test_sequence_past_the_positions_is_refused() -> None:
    check_length(ARCH, 32, "x")
    with pytest.raises(ConfigError, match="x = 33 tokens: the model has 32 positions"):
        check_length(ARCH, 33, "x")


@pytest.mark.parametrize(("dtype", "size"), [("f32", 4), ("bf16", 2), ("f16", 2)])
def test_bytes_by_hand(dtype: str, size: int) -> None:
    made = plan(config(2, 2, model={"checkpoint": "PATH", "dtype": dtype}), machine(4))
    h, f, v, t = 48, 192, 101, 2
    whole = 4 * h + 2 * h  # both norms, and the biases added once
    cut = (h * 3 * h + 3 * h + h * h + h * f + f + f * h) // t
    embedding = -(-v // t) * h
    ends = {0: embedding + 32 * h, 1: embedding + 2 * h}
    for device in made.devices:
        assert device.weight_bytes == size * (5 * (whole + cut) + ends[device.pipeline])
        assert device.cache_bytes_per_token == size * 2 * 5 * h // t


def test_int8_bytes_by_hand() -> None:
    made = plan(config(model={"checkpoint": "PATH", "weights": "int8"}), machine(1))
    h, f, v = 48, 192, 101
    codes, outputs = h * 3 * h + h * h + 2 * h * f, 3 * h + h + f + h
    layer = codes + 4 * outputs + 4 * (4 * h + outputs)  # codes, scales, norms and biases
    assert made.devices[0].weight_bytes == 10 * layer + 4 * (v * h + 32 * h + 2 * h)


@pytest.mark.parametrize("tensor", [1, 2, 3, 4])
@pytest.mark.parametrize("pipeline", [1, 3])
def test_devices_hold_each_tensor(tensor: int, pipeline: int) -> None:
    made = plan(config(tensor, pipeline), machine(tensor * pipeline))
    rules: tuple[TensorRule, ...] = family("gpt2").tensors(ARCH)
    held = [
        name
        for d in made.devices
        if d.tensor == 0
        for p in stage_tensors(rules, d)
        for name in p.sources
    ]
    expected = [name for p in place_all(rules, 10, 0) for name in p.sources]
    again = ["wte.weight"] if pipeline > 1 else []
    assert sorted(held) == sorted(expected + again)


def test_rows_that_fit_fall_with_length_and_rise_with_memory() -> None:
    def rows(tokens: int, memory: int, tensor: int = 1) -> int:
        return plan(config(tensor), machine(tensor, memory=memory)).rows_that_fit(tokens)

    by_length = [rows(n, 10**8) for n in (1, 2, 7, 16, 32)]
    assert by_length == sorted(by_length, reverse=True)
    assert by_length[0] > by_length[-1] > 0
    by_memory = [rows(16, m) for m in (0, 10**6, 10**7, 10**8, 10**9)]
    assert by_memory == sorted(by_memory)
    assert by_memory[0] == 0
    assert rows(16, 10**8, tensor=2) > rows(16, 10**8)
    made = plan(config(), machine(1, memory=10**8))
    device, fit = made.devices[0], made.rows_that_fit(16)
    used = device.weight_bytes + made.workspace_bytes + 16 * fit * device.cache_bytes_per_token
    assert used <= 10**8 < used + 16 * device.cache_bytes_per_token
    with pytest.raises(ValueError, match="at least 1"):
        made.rows_that_fit(0)


def test_rows_that_fit_are_those_of_the_fullest_device() -> None:
    made = plan(config(1, 3), machine(3, memory=10**8), replace(ARCH, vocab=100_001))
    fits = [
        (10**8 - made.workspace_bytes - d.weight_bytes) // (8 * d.cache_bytes_per_token)
        for d in made.devices
    ]
    assert len(set(fits)) > 1
    assert made.rows_that_fit(8) == min(fits) > 0


def test_batch_tokens_follow_the_device_unless_named() -> None:
    assert plan(config(), machine(1)).max_tokens == 2048
    assert plan(config(), Machine((1,), "cuda", 10**9, "test")).max_tokens == 33792
    assert plan(config(), Machine((2,), "cuda", 10**9, "test")).max_tokens == 16384
    assert plan(config(batch={"max_tokens": 77}), machine(1)).max_tokens == 77


def test_a_larger_batch_is_scored_only_where_it_fits() -> None:
    whole = plan(config(), Machine((1,), "cuda", 10**9, "test"))
    taken = whole.devices[0].weight_bytes + whole.workspace_bytes
    assert plan(config(), Machine((1,), "cuda", taken, "test")).max_tokens == 33792
    assert plan(config(), Machine((1,), "cuda", taken - 1, "test")).max_tokens == 16384


def test_batches_of_a_pipeline_are_smaller_down_to_a_limit() -> None:
    def tokens(stages: int, device: str, **groups: dict[str, Any]) -> int:
        made = config(1, stages, **groups)
        return plan(made, Machine((stages,), device, 10**9, "test")).max_tokens

    assert [tokens(p, "cpu") for p in (1, 2, 3, 4, 10)] == [2048, 1024, 682, 512, 512]
    assert [tokens(p, "cuda") for p in (1, 2, 5, 10)] == [33792, 16896, 6758, 3379]
    continued = {"mode": "generate"}
    found = [tokens(p, "cuda", dataset=continued) for p in (1, 2, 5, 8, 10)]
    assert found == [16384, 8192, 3276, 2048, 2048]
    assert tokens(4, "cpu", batch={"max_tokens": 2048}) == 2048
    assert plan(config(2, 1, 2), machine(4)).max_tokens == 2048


def test_plan_is_plain_json() -> None:
    made = plan(config(2, 2), machine(4))
    assert json.loads(json.dumps(made.as_dict()))["devices"][3]["pipeline"] == 1


BIG = ["model=gpt175b", "cluster.nodes=16", "cluster.devices_per_node=8", "cluster.device=cuda"]
# Runs the command in this process, then says which heavy packages it has loaded.
PROBE = """
import sys
from ftjob.__main__ import main
code = main(sys.argv[1:])
print("loaded:", sorted({"torch", "transformers", "mpi4py", "datasets"} & set(sys.modules)))
sys.exit(code)
"""


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROBE, "plan", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_175b_on_16_nodes_of_8_prints_without_torch() -> None:
    start = time.monotonic()
    done = command(*BIG, "parallel.tensor=8", "parallel.pipeline=16", "model.dtype=f16")
    assert time.monotonic() - start < 10.0
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stdout
    assert "tensor 8 x pipeline 16 x data 1 = 128 cuda devices on 16 ranks" in done.stdout
    assert "96 layers, 96 heads of 128, hidden 12288" in done.stdout
    assert re.search(r"\b174[.,]6", done.stdout)
    stages = [line.split() for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert [s[:2] for s in stages] == [[str(i), f"{6 * i}-{6 * i + 5}"] for i in range(16)]
    assert {"rows", "fit"} <= set(done.stdout.split())
    # 15 / (64 + 15) and 15 / (256 + 15) for equal stages; the last one has less to do
    assert (
        "pipeline   bubble 19 % with 64 micro-batches of 2112 tokens a replica, 6 % with 256, 1 % "
        "in the long run" in done.stdout
    )


def test_bubble_is_stated_for_several_stages_only() -> None:
    """Two stages of the demo model, by hand: layers of 12 h^2, the last one's 9 h^2 and the head
    at one position in sixteen."""
    h, v = 384, 8192
    first = 4 * 12 * h * h
    last = 3 * 12 * h * h + 3 * h * h + (9 * h * h + h * v) / 16
    both = command("parallel.pipeline=2", "cluster.devices_per_node=2")
    assert both.returncode == 0, both.stderr
    shares = [1 - m * (first + last) / (2 * (m * first + last)) for m in (8, 32)]
    shares.append(1 - (first + last) / (2 * first))
    low, middle, end = (f"{100 * share:.0f} %" for share in shares)
    assert (
        f"pipeline   bubble {low} with 8 micro-batches of 1024 tokens a replica, {middle} with 32, "
        f"{end} in the long run (stages of unequal work)\n" in both.stdout
    )
    every = command("parallel.pipeline=2", "cluster.devices_per_node=2", "dataset.ngrams=1")
    assert every.returncode == 0, every.stderr
    last += (9 * h * h + h * v) * 15 / 16
    assert f", {100 * (1 - (first + last) / (2 * last)):.0f} % in the long run" in every.stdout
    assert f", {end} in the long run" not in every.stdout
    alone = command("parallel.tensor=2", "cluster.devices_per_node=2")
    assert alone.returncode == 0, alone.stderr
    assert "bubble" not in alone.stdout


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["parallel.tensor=5", "parallel.pipeline=16"], ["96 attention heads", "Legal: 1, 2, 3"]),
        (["parallel.tensor=8", "parallel.pipeline=97"], ["96 layers", "1 to 96"]),
        (["parallel.tensor=3"], ["128 devices (16 ranks of 8)"]),
        (["plan.input_len=2000", "plan.output_len=49"], ["2049 tokens", "2048 positions"]),
    ],
    ids=str,
)
def test_command_refuses_by_name(overrides: list[str], words: list[str]) -> None:
    done = command(*BIG, *overrides)
    assert done.returncode == CONFIG_REFUSED
    assert "loaded: []" in done.stdout
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
