"""What the management library's calls become: GPUs, links and states, by a library of made-up ones;
and what is known without any."""

from __future__ import annotations

from pathlib import Path

import fake_nvml
import pytest

from ftjob.launch.nvml import visible_names
from ftjob.launch.topology import Topology, core_ranges, look, parse_cores
from ftjob.launch.world import visible_gpus


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(fake_nvml.build(tmp_path_factory.mktemp("nvml")))


@pytest.fixture
def seen(library: str, tmp_path: Path) -> Topology:
    for bus, node, cores in (("1a", "0", "0-3"), ("1b", "-1", "0-3"), ("1c", "1", "4-5,8")):
        folder = tmp_path / f"0000:{bus}:00.0"
        folder.mkdir()
        (folder / "numa_node").write_text(f"{node}\n", encoding="ascii")
        (folder / "local_cpulist").write_text(f"{cores}\n", encoding="ascii")
    return look({}, library, tmp_path)


def test_every_fact_of_a_gpu(seen: Topology) -> None:
    assert seen.driver == "580.1"
    assert [g.index for g in seen.gpus] == [0, 1, 2, 3]
    bad = seen.gpus[3]
    assert (bad.name, bad.uuid, bad.bus_id) == ("Made-up 3", "GPU-d", "0000:1d:00.0")
    assert (bad.total_bytes, bad.free_bytes) == (80_000_000_000, 30_000_000_000)
    assert bad.compute_mode == "exclusive process"
    assert bad.slowdowns == ("hardware slowdown", "heat (hardware)")  # a power cap is none
    assert bad.ecc_errors == 2
    assert bad.mig is True
    slow = seen.gpus[2]
    assert (slow.pcie_generation, slow.pcie_max_generation) == (1, 5)
    assert (slow.pcie_width, slow.pcie_max_width) == (8, 16)
    good = seen.gpus[0]
    assert (good.slowdowns, good.mig, good.compute_mode) == ((), False, "default")
    assert good.performance_state == 0
    assert good.ecc_errors is None  # the library says it does not know


def test_numa_nodes_and_cores_come_from_sys(seen: Topology) -> None:
    assert [g.numa_node for g in seen.gpus] == [0, None, 1, None]
    assert [g.cores for g in seen.gpus] == [(0, 1, 2, 3), (0, 1, 2, 3), (4, 5, 8), None]


def test_links_of_every_pair(seen: Topology) -> None:
    found = {(p.first, p.second): p for p in seen.pairs}
    assert len(found) == 6
    straight, switched, apart = found[0, 1], found[2, 3], found[0, 2]
    assert (straight.nvlinks, straight.switched, straight.path) == (2, False, "PXB")
    assert (switched.nvlinks, switched.switched, switched.peer) == (3, True, True)
    assert (apart.nvlinks, apart.path, apart.peer) == (0, "SYS", False)
    assert apart.no_peer == "they hang on bridges that do not pass it on"
    assert [p.link for p in (straight, switched, apart)] == ["NV2", "NV3", "SYS"]
    assert seen.pair(3, 2) == switched
    assert seen.first(2).pairs == (straight,)


def test_what_cuda_says_of_peers_counts(seen: Topology) -> None:
    told = seen.with_peers({(0, 1): True, (1, 0): False, (0, 2): True, (2, 0): True})
    assert [(p.peer, p.nvlinks) for p in told.pairs[:3]] == [(False, 2), (True, 0), (False, 0)]


def test_links_whose_ends_are_hidden(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NVML_HIDDEN", "1")
    hidden = look({}, library)
    links = {(p.first, p.second): p.nvlinks for p in hidden.pairs}
    assert links == {(0, 1): 2, (2, 3): 3, (0, 2): 0, (0, 3): 0, (1, 2): 0, (1, 3): 0}


def test_gpus_are_those_that_cuda_shows_in_its_order(library: str) -> None:
    found = look({"CUDA_VISIBLE_DEVICES": "3, GPU-b ,7,-1,0"}, library)
    assert [(g.index, g.uuid) for g in found.gpus] == [(0, "GPU-d"), (1, "GPU-b"), (2, None)]
    assert found.pair(0, 2) is not None
    assert found.pair(0, 2).link == "?"  # type: ignore[union-attr]
    assert look({"CUDA_VISIBLE_DEVICES": ""}, library).gpus == ()


def test_nothing_without_the_library(tmp_path: Path) -> None:
    found = look({}, str(tmp_path / "libnothing.so"))
    assert (found.gpus, found.pairs, found.driver) == ((), (), None)
    assert found.cores
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"no library")
    assert look({}, str(broken)).gpus == ()


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("0,1", ["0", "1"]),
        (" 2 ,GPU-x,", ["2", "GPU-x"]),
        ("0,-1,1", ["0"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", ["NoDevFiles"]),
    ],
)
def test_visible_names_end_where_cuda_ends_them(listed: str, names: list[str]) -> None:
    assert visible_names({"CUDA_VISIBLE_DEVICES": listed}) == names
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": listed}) == len(names)


def test_visible_names_are_open_where_nothing_is_set() -> None:
    assert visible_names({}) is None


@pytest.mark.parametrize(
    ("text", "cores"),
    [("0-3,8,10-11", (0, 1, 2, 3, 8, 10, 11)), ("5", (5,)), ("", ()), ("x-3,4,5-y", (4,))],
)
def test_core_lists(text: str, cores: tuple[int, ...]) -> None:
    assert parse_cores(text) == cores
    if text and "x" not in text:
        assert core_ranges(cores) == text
