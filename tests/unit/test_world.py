"""The memory that GPUs are planned with, what is set for NCCL and CUDA before torch is imported,
and the launch mode that is refused.
"""

from __future__ import annotations

import pytest

from ftjob.config import JobConfig
from ftjob.config.compose import compose
from ftjob.environment import variables
from ftjob.errors import ConfigError
from ftjob.job import shape_source
from ftjob.launch.world import (
    ASSUMED_GPU_BYTES,
    GPU_CONTEXT_BYTES,
    GPU_SHARE,
    World,
    make_machine,
    set_gpu_environment,
)
from ftjob.plan import Machine, Plan, make_plan

GPUS = Machine((2,), "cuda", 10**11, "test")


FULL, HALF, LITTLE = 80 * 10**9, 40 * 10**9, 10**9


@pytest.mark.parametrize(
    ("free", "least", "source"),
    [
        ([(FULL, FULL), (FULL, HALF)], HALF, "free on rank 1's fullest GPU"),
        ([(HALF, FULL), (FULL, FULL)], HALF, "free on rank 0's fullest GPU"),
        # a third GPU that is not used does not count, nor does a rank that knows nothing
        ([(FULL, FULL, LITTLE), (FULL, HALF, LITTLE)], HALF, "free on rank 1's fullest GPU"),
        ([None, (FULL, HALF)], HALF, "free on rank 1's fullest GPU"),
        ([None, None], None, "assumed; set cluster.memory_gb"),
    ],
)
def test_memory_is_that_of_the_fullest_gpu_of_all_ranks(
    free: list[tuple[int, ...] | None], least: int | None, source: str
) -> None:
    config = compose(["cluster.devices_per_node=2", "cluster.device=cuda"])
    found = make_machine(
        config.cluster, World(0, 2, "mpirun"), {}, gpus_of_rank=(3, 3), free_of_rank=free
    )
    wanted = ASSUMED_GPU_BYTES if least is None else int(GPU_SHARE * (least - GPU_CONTEXT_BYTES))
    assert found.memory_bytes == wanted
    assert found.memory_source.startswith(source)
    told = compose(["cluster.memory_gb=7", "cluster.device=cuda"])
    found = make_machine(
        told.cluster, World(0, 2, "mpirun"), {}, gpus_of_rank=(3, 3), free_of_rank=free
    )
    assert (found.memory_bytes, found.memory_source) == (7 * 10**9, "cluster.memory_gb")


def test_defaults_on_gpus() -> None:
    env: dict[str, str] = {}
    set_gpu_environment(GPUS, "PARALLEL", env)
    assert env == {
        "NCCL_LAUNCH_MODE": "PARALLEL",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
        "TORCH_NCCL_ENABLE_MONITORING": "0",
        "CUDA_DEVICE_MAX_CONNECTIONS": "32",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    assert variables(env) == env  # environment.json and the report keep all of them


def test_what_the_user_set_stands() -> None:
    own = {
        "NCCL_LAUNCH_MODE": "GROUP",
        "NCCL_ALGO": "Tree",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        "TORCH_NCCL_ENABLE_MONITORING": "1",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "CUDA_DEVICE_ORDER": "FASTEST_FIRST",
    }
    env = dict(own)
    set_gpu_environment(GPUS, "PARALLEL", env)
    assert env == own
    assert variables(env) == own


def test_nothing_on_cpus() -> None:
    env: dict[str, str] = {}
    set_gpu_environment(Machine((2,), "cpu", 1, "test"), "PARALLEL", env)
    assert env == {}


def planned(machine: Machine, *overrides: str) -> Plan:
    config: JobConfig = compose(["cluster.nccl_launch_mode=GROUP", "model=gpt345m", *overrides])
    source = shape_source(config, "random")
    return make_plan(config, source.arch, source.rules, machine)


def test_group_launches_are_refused_where_threads_capture() -> None:
    with pytest.raises(ConfigError, match=r"nccl_launch_mode=GROUP: .* graphs.* Use PARALLEL"):
        planned(GPUS, "parallel.tensor=2", "dataset.mode=generate")


@pytest.mark.parametrize(
    ("machine", "overrides"),
    [
        (GPUS, ("parallel.tensor=2",)),  # scoring captures nothing
        (GPUS, ("dataset.mode=generate",)),  # whole models: no NCCL
        (Machine((1, 1), "cuda", 10**11, ""), ("parallel.tensor=2", "dataset.mode=generate")),
        (Machine((2,), "cpu", 10**11, ""), ("parallel.tensor=2", "dataset.mode=generate")),
    ],
)
def test_group_launches_elsewhere(machine: Machine, overrides: tuple[str, ...]) -> None:
    assert planned(machine, *overrides).devices


def test_other_modes_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"nccl_launch_mode=group.*PARALLEL \| GROUP"):
        compose(["cluster.nccl_launch_mode=group"])
