"""Whatever ends one of two GPUs ends the job, in time, for the first cause; then the same command
goes on. A kernel that waits for the other GPU's part must keep nobody.

As `tests/mpi`, whose jobs these are, with NCCL and peers in place of MPI and shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from gpu_jobs import DEVICE, MEMORY, ON, Runs
from harness import Place, ended, load
from misbehaving import (
    DEADLINE_S,
    HANGS,
    KILLED,
    RAISES,
    STEPS,
    Case,
    Ends,
    check_first_cause,
)

from ftjob.__main__ import main

pytestmark = [pytest.mark.timeout(240), pytest.mark.two_gpus]
# A GPU's kernels are compiled in the first of these jobs.
LIMIT_S = 10.0 if DEVICE == "cuda" else DEADLINE_S
ROWS = 62
COMMAND = (
    "model=demo_t5",
    "dataset=demo_en_de",
    "decode.beams=2",
    "decode.max_new_tokens=20",
    "batch.lanes=16",
    ON,
    MEMORY,
)
RAISED, SILENT = "put in by the test", "no sign of life"
# Of a thread that hangs and the one that waits for its GPU, either may be found silent first; or
# the GPU that waits in a sum gives up before the host does.
EITHER = "run.deadline_s"
TENSOR = ("parallel.tensor=2",)
STAGES = ("parallel.pipeline=2",)


@dataclass(frozen=True)
class Layout:
    """Who misbehaves in which layout; `ranks` of one GPU each, or one with both."""

    case: Case
    ranks: int

    @property
    def overrides(self) -> tuple[str, ...]:
        return (*COMMAND, f"cluster.devices_per_node={2 // self.ranks}")

    def launch(self, driver: Place) -> Place:
        return driver if self.ranks == 1 else driver.ranks(2, one_gpu=True)


CASES = {
    "a thread raises": Layout(
        Case(0, RAISES, 1, ("rank 0 device 1", "in decode", RAISED), at="1", layout=TENSOR), 1
    ),
    "a thread hangs before the others' sum": Layout(
        Case(0, HANGS, 124, ("rank 0 device", "in decode", EITHER), at="1", layout=TENSOR), 1
    ),
    "a rank's thread hangs before the others' sum": Layout(
        Case(1, HANGS, 124, ("device 0", "in decode", SILENT), at="0", layout=TENSOR), 2
    ),
    "the last stage hangs": Layout(
        Case(0, HANGS, 124, ("rank 0 device", "in decode", SILENT), at="1", layout=STAGES), 1
    ),
    "a rank raises": Layout(
        Case(1, RAISES, 1, ("rank 1 device 0", "in decode", RAISED), at="0", layout=TENSOR), 2
    ),
    "a rank of a tensor group is killed": Layout(Case(1, KILLED, None, at="0", layout=TENSOR), 2),
    "a rank of stages is killed": Layout(Case(0, KILLED, None, at="0", layout=STAGES), 2),
}


def ends(place: Place, about: Layout) -> Ends:
    """The job to its early end, and again to the good one."""
    job = Ends(place, about.overrides, about.case, STEPS, ROWS, about.launch, LIMIT_S)
    job.check_gone(about.ranks)
    return job


@pytest.fixture(scope="module")
def undisturbed(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one device to the end, when no other test's runs share the GPUs any more: two that
    wait for each other's sums would take turns with those, and pass for silent."""
    runs.settle()
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main([*COMMAND, "cluster.devices_per_node=1", f"run.dir={run}"]) == 0
    return run


@pytest.mark.parametrize("name", CASES)
def test_case(place: Place, undisturbed: Path, name: str) -> None:
    about, case = CASES[name], CASES[name].case
    job = ends(place, about)
    if case.code is None:
        assert job.ended.code not in (0, 75)
        assert job.place("report", "run").code not in (0, 75)
        assert load(job.run / "status.json")["cause"]
    else:
        assert job.ended.code == case.code, job.ended.err
        check_first_cause(job, case)
    assert 0 < job.answered() < ROWS
    ended(about.launch(job.place).start(*job.arguments), timeout=100).expect(0)
    job.place("compare", "run", str(undisturbed)).expect(0)
