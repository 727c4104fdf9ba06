"""Each warning on a machine names what was found, what it costs and what to change; a good machine
gets none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ftjob.config.compose import compose
from ftjob.launch.advice import CopyRate, advise
from ftjob.launch.site import Site, advise_on, existing, look_around, parse_kinds
from ftjob.launch.topology import Gpu, Pair, Topology

GOOD = Gpu(
    index=0,
    numa_node=0,
    cores=(0, 1, 2, 3),
    pcie_generation=5,
    pcie_width=16,
    pcie_max_generation=5,
    pcie_max_width=16,
    performance_state=0,
    total_bytes=100 * 10**9,
    free_bytes=99 * 10**9,
    compute_mode="default",
    ecc_errors=0,
    slowdowns=(),
    mig=False,
)


def machine(*changes: dict[str, Any], **pair: Any) -> Topology:
    """GPUs like GOOD with changes; every pair joined by 18 NVLinks unless said otherwise."""
    gpus = tuple(replace(GOOD, index=i, **change) for i, change in enumerate(changes or ({}, {})))
    link = {"nvlinks": 18, "switched": True, "path": "NODE", "peer": True, **pair}
    pairs = tuple(Pair(a, b, **link) for a in range(len(gpus)) for b in range(a + 1, len(gpus)))
    return Topology(gpus, pairs, tuple(range(8)))


def told(seen: Topology, *words: str, **more: Any) -> None:
    """There is one warning, and it has every word."""
    (advice,) = advise(seen, more.pop("env", {}), **more)
    for word in words:
        assert word in str(advice)
    assert advice.found
    assert advice.costs
    assert advice.change


def test_a_good_machine_gets_no_warning() -> None:
    env = {"NCCL_DEBUG": "INFO", "NCCL_P2P_DISABLE": "0", "NCCL_LAUNCH_MODE": "PARALLEL"}
    assert advise(machine(), env, [(0, 1)], [CopyRate(0, 1, 380e9)]) == []


def test_what_nobody_says_is_no_warning() -> None:
    unknown = Topology((Gpu(0), Gpu(1)), (Pair(0, 1),), (0,))
    assert advise(unknown, {}, [(0, 1)], [CopyRate(0, 1, 1e6)]) == []


def test_a_group_over_pcie_is_told_what_else_to_do() -> None:
    slow = machine(nvlinks=0, path="SYS")
    words = ("GPUs 0 and 1 of node1 talk over SYS", "is slow", "parallel.pipeline")
    told(slow, *words, groups=[(0, 1)], host="node1")
    assert advise(slow, {}, []) == []  # nobody shares a layer
    assert advise(slow, {}, [(0,), (1,)]) == []


def test_pairs_of_one_kind_are_one_warning() -> None:
    words = ("GPUs 0 and 1; 0 and 2; 0 and 3; 1 and 2 and 2 pairs more of this node",)
    told(machine({}, {}, {}, {}, nvlinks=0), *words, groups=[range(4)])


def test_no_peer_access() -> None:
    apart = machine(nvlinks=0, peer=False, no_peer="the chipset does not support it")
    words = ("cannot reach each other's memory (the chipset", "host memory", "ACS")
    told(apart, *words, groups=[(0, 1)])


def test_copies_that_do_not_use_their_nvlinks() -> None:
    words = ("from GPU 1 to 0 reach 50 GB/s over 18 NVLinks", "360 GB/s", "nvidia-smi nvlink")
    told(machine(), *words, copies=[CopyRate(0, 1, 300e9), CopyRate(1, 0, 50e9)])
    assert advise(machine(nvlinks=0), {}, copies=[CopyRate(0, 1, 1e9)]) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pcie_width": 8}, ("GPU 1's PCIe link runs at 8 of 16 lanes", "loading", "reseated")),
        ({"pcie_generation": 3}, ("generation 3 of 5",)),
        ({"slowdowns": ("heat (driver)",)}, ("GPU 1 is slowed down by heat", "cooling")),
        ({"free_bytes": 20 * 10**9}, ("GPU 1 has 20 of 100 GB free", "nvidia-smi lists it")),
        ({"compute_mode": "exclusive process"}, ("exclusive process", "one rank a node")),
        ({"compute_mode": "prohibited"}, ("prohibited", "nothing runs", "-c DEFAULT")),
        ({"ecc_errors": 3}, ("3 uncorrected memory errors", "wrong", "replaced")),
        ({"mig": True}, ("cut into MIG", "no way to any other GPU", "parallel.data")),
        (
            {"cores": (8, 9, 11), "numa_node": 1},
            ("GPU 1 lies beside cores 8-9,11 (NUMA node 1)", "0-7", "numactl --cpunodebind=1"),
        ),
        ({"cores": (9,), "numa_node": None}, ("beside cores 9,", "--cpu-bind", "numactl -C 9")),
    ],
)
def test_what_is_wrong_with_a_gpu(change: dict[str, Any], words: tuple[str, ...]) -> None:
    told(machine({}, change), *words)


def test_an_idle_gpu_rests_its_link() -> None:
    assert advise(machine({"pcie_generation": 1, "performance_state": 8}), {}) == []


@pytest.mark.parametrize("name", ["NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE"])
def test_ways_of_nccl_that_are_switched_off(name: str) -> None:
    told(machine(), f"{name}=1 is set", f"Unset {name}", env={name: "1"})


def test_launches_that_wait_for_each_other() -> None:
    env = {"NCCL_LAUNCH_MODE": "GROUP"}
    told(machine(), "NCCL_LAUNCH_MODE=GROUP", "deadlock", "PARALLEL", env=env)
    assert advise(machine({}), env) == []  # one GPU waits for nobody


SITE = Site("MPICH Version: 5.0", "slurm 25.05", ("none", "pmi2"), 1 << 40, "/here", True, 1 << 40)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ()),
        ({"slurm": None, "mpi_kinds": (), "mpi_library": "Open MPI v5"}, ()),
        ({"mpi_library": None}, ("no MPI library", "ftjob[mpi]")),
        ({"mpi_library": "Open MPI v5.0.1"}, ("cluster.mpi=pmi2", "Set cluster.mpi=pmix")),
        ({"mpi_kinds": ("none", "cray_shasta")}, ("srun knows none, cray_shasta",)),
        ({"shm_bytes": 64 << 20}, ("/dev/shm has 67 MB free", "--shm-size=1g")),
        ({"writable": False}, ("/here is not writable", "run.dir")),
        ({"disk_bytes": 5 << 20}, ("/here has 5 MB free", "journal")),
    ],
)
def test_what_is_wrong_around(change: dict[str, Any], words: tuple[str, ...]) -> None:
    found = list(advise_on(replace(SITE, **change), compose([])))
    assert len(found) == bool(words)
    for word in words:
        assert word in str(found[0])


def test_this_host_is_looked_at(tmp_path: Any) -> None:
    site = look_around(compose([f"run.dir={tmp_path}/a/b"]))
    assert (site.folder, site.writable) == (str(tmp_path), True)
    assert site.mpi_library is not None
    assert site.suits in ("pmi2", "pmix")
    assert site.shm_bytes is not None
    assert existing(tmp_path / "x" / "y") == tmp_path


def test_plugins_that_srun_lists() -> None:
    said = "MPI plugin types are...\n\tnone\n\tpmi2\n\tpmix\nspecific pmix plugin versions: pmix_v5"
    assert parse_kinds(said) == ("none", "pmi2", "pmix")
