"""What is set for NCCL and CUDA before torch is imported, and the launch mode that is refused."""

from __future__ import annotations

import pytest

from ftjob.config import JobConfig
from ftjob.config.compose import compose
from ftjob.environment import variables
from ftjob.errors import ConfigError
from ftjob.job import shape_source
from ftjob.launch.world import set_gpu_environment
from ftjob.plan import Machine, Plan, make_plan

GPUS = Machine((2,), "cuda", 10**11, "test")


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
