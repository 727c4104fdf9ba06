"""`doctor` end to end: on this machine's CPU, beside a management library of made-up GPUs, and what
it refuses."""

from __future__ import annotations

from pathlib import Path

import fake_nvml
from harness import Place, load


def test_two_devices_of_this_machine(place: Place) -> None:
    out = place.cwd / "found.json"
    done = place(
        *("doctor", "cluster.devices_per_node=2", "parallel.tensor=2", f"doctor.out={out}")
    ).expect(0)
    for word in ("versions   ftjob", "device 0   copy", "all-reduce over", "0, 1", "MPI        "):
        assert word in done.out
    lines = done.out.splitlines()
    found = load(out)
    count = len(found["warnings"])
    assert lines[-1] == f"{count or 'no'} warning{'' if count == 1 else 's'}"
    assert sum(line.startswith("warning: ") for line in lines) == count
    assert found["broken"] == []
    assert {r["ways"] for r in found["all_reduce"]} == {2}
    assert found["groups"][0]["devices"] == [0, 1]
    assert found["product_flop_s"] == found["devices"][0]["product_flop_s"]
    assert found["dtype"] == "f32"
    assert "NCCL_LAUNCH_MODE" not in found["environment"]["variables"]  # a CPU has no NCCL


def test_made_up_gpus_and_what_is_wrong_with_them(place: Place) -> None:
    library = fake_nvml.build(place.cwd)
    env = {"LD_LIBRARY_PATH": str(library.parent), "NCCL_P2P_DISABLE": "1"}
    done = place("doctor", "cluster.device=cpu", "cluster.devices_per_node=2", env=env).expect(0)
    matrix = next(line for line in done.out.splitlines() if line.startswith("GPU1 "))
    assert matrix.split() == ["GPU1", "NV2", "X", "SYS", "SYS", "0"]
    assert "gen 1 x8 of gen 5 x16" in done.out
    assert "variable   NCCL_P2P_DISABLE=1" in done.out
    for word in (
        *("GPU 2's PCIe link runs at 8 of 16 lanes", "GPU 3 is slowed down by hardware slowdown"),
        *("GPU 3 has 30 of 80 GB free", "2 uncorrected memory errors", "NCCL_P2P_DISABLE=1 is"),
    ):
        assert word in done.out
    assert "copies from GPU" not in done.out  # what CPU threads hand over says nothing of GPUs
    assert done.out.splitlines()[-1].endswith(" warnings")


def test_sums_that_are_wrong_end_it_with_1(place: Place) -> None:
    wrong = place.driver(
        "wrong",
        """
from ftjob.comm.threads import Member

right = Member.all_reduce
def all_reduce(self, x, op="sum"):
    return right(self, x, op) + (op == "sum" and self.rank == 1)
Member.all_reduce = all_reduce
""",
    )
    out = place.cwd / "found.json"
    done = wrong("doctor", "cluster.devices_per_node=2", f"doctor.out={out}").expect(1)
    told = "the sum over cpu:0 and cpu:1 is wrong on cpu:1: element 0"
    assert f"broken: {told}" in done.out
    found = load(out)
    assert found["broken"][0].startswith(told)
    assert found["all_reduce"] == []
    assert found["copy_bytes_s"] > 0


def test_refusals(place: Place, tmp_path: Path) -> None:
    place("doctor", f"doctor.out={tmp_path}").expect(2, "doctor.out=", "is a folder")
    ranks = {"PMI_RANK": "0", "PMI_SIZE": "2"}
    place("doctor", env=ranks).expect(2, "doctor under mpirun (PMI) with 2 ranks", "one process")
