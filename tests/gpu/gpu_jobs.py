"""The jobs of these tests: the same tasks on the CPU, on one GPU and split over two, each layout in
a process of its own, all side by side.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from harness import Ended, Place, ended, lines, load, text_of

from ftjob.__main__ import main

DEVICE = os.environ.get("FTJOB_TESTS_DEVICE", "cuda")
ON = f"cluster.device={DEVICE}"
# The GPUs are shared by runs side by side, each of which would plan with all that is free.
MEMORY = "cluster.memory_gb=4"
# Rows of each kind of task, fewer where a CPU of a few cores does it all.
SCORED, PROMPTS, PAIRS = (400, 40, 62) if DEVICE == "cuda" else (24, 16, 16)
PROMPT_FILE = (
    "model=demo_gpt",
    "dataset=prompts",
    "dataset.path=prompts.txt",
    "decode.max_new_tokens=16",
)
EN_DE = (
    "model=demo_t5",
    "dataset=demo_en_de",
    f"dataset.limit={PAIRS}",
    "decode.max_new_tokens=20",
)
# task -> rows, overrides; prompts.txt lies where they run
TASKS: MappingProxyType[str, tuple[int, tuple[str, ...]]] = MappingProxyType(
    {
        "scored": (SCORED, ("model=demo_gpt", f"dataset.limit={SCORED}")),
        "prompts": (PROMPTS, PROMPT_FILE),
        "greedy": (PAIRS, EN_DE),
        "beam4": (PAIRS, (*EN_DE, "decode=beam4")),
        "nucleus": (PAIRS, (*EN_DE, "decode=nucleus")),
    }
)
# Few lanes and small batches, so that rows enter in place of others.
SMALL = ("batch.max_tokens=512", "batch.lanes=16")
# layout -> devices, tensor x pipeline x data, overrides
SPLITS: MappingProxyType[str, tuple[int, int, int]] = MappingProxyType(
    {"tensor": (2, 1, 1), "pipeline": (1, 2, 1), "data": (1, 1, 2)}
)
# Runs every job of the first argument, a JSON object of names and overrides, one by one.
SEVERAL = """
import json
import sys

from ftjob.__main__ import main

jobs = json.loads(sys.argv[1])
codes = {name: main(arguments) for name, arguments in jobs.items()}
sys.exit(max(codes.values()))
"""


def overrides(layout: str, devices: int) -> tuple[str, ...]:
    """Those of a layout: the CPU alone, one device, or a split over two, `devices` a rank."""
    if layout == "cpu":
        return ("cluster.device=cpu", "cluster.devices_per_node=1")
    if layout == "one":
        return (ON, "cluster.devices_per_node=1", "batch.lanes=64")
    tensor, pipeline, data = SPLITS[layout]
    mesh = (f"parallel.tensor={tensor}", f"parallel.pipeline={pipeline}", f"parallel.data={data}")
    return (ON, f"cluster.devices_per_node={devices}", *mesh, *SMALL)


class Runs:
    """Runs by layout: "cpu", "one", a split as threads of one rank such as "tensor", or one as two
    ranks such as "tensor ranks". They begin together and are waited for one by one; those of a
    tensor group are run after all others. GPUs that share their time with other processes' wait
    for each other a time slice long in every sum."""

    def __init__(self, folder: Path) -> None:
        self._place = Place(folder)
        write_prompts(folder)
        (folder / "several.py").write_text(SEVERAL, encoding="utf-8")
        self._pool = ThreadPoolExecutor(8 if DEVICE == "cuda" else 1)
        self._begun: dict[tuple[str, str], Future[Ended]] = {}
        self._later: dict[str, list[str]] = {}

    def begin(self, layout: str, *tasks: str) -> None:
        """Begin the runs of a layout for these tasks, those that have not begun."""
        if layout.startswith("tensor") and DEVICE == "cuda":
            self._later.setdefault(layout, []).extend(tasks)
        else:
            self._begin(layout, tasks)

    def _begin(self, layout: str, tasks: Sequence[str]) -> None:
        todo = list(dict.fromkeys(task for task in tasks if (layout, task) not in self._begun))
        if layout.endswith("ranks"):  # MPI begins and ends once a process
            for task in todo:
                self._begun[layout, task] = self._pool.submit(partial(self._as_ranks, layout, task))
        elif todo:
            every = self._pool.submit(partial(self._as_threads, layout, todo))
            self._begun |= dict.fromkeys(((layout, task) for task in todo), every)

    def __call__(self, layout: str, task: str) -> Path:
        """The folder of a run that ended well, with every row answered once."""
        if (layout, task) not in self._begun:
            self.settle()
            alone = [task] if layout.endswith("ranks") else self._later[layout]
            self._begin(layout, alone)
        done = self._begun[layout, task].result()
        run = self._place.cwd / f"{layout} {task}"
        assert (run / "results.json").exists(), f"{done.out}\n{done.err}"
        results = load(run / "results.json")
        assert results["code"] == 0, f"{results['cause']}\n{done.err}"
        rows, _ = TASKS[task]
        assert [sample["index"] for sample in lines(run / "samples.jsonl")] == list(range(rows))
        return run

    def settle(self) -> None:
        """Wait for all runs that have begun."""
        wait(self._begun.values())

    def _arguments(self, layout: str, task: str, devices: int) -> tuple[str, ...]:
        split = overrides(layout.removesuffix(" ranks"), devices)
        return (*TASKS[task][1], *split, MEMORY, f"run.dir={layout} {task}")

    def _as_threads(self, layout: str, tasks: list[str]) -> Ended:
        devices = 2 if layout in SPLITS else 1
        jobs = {task: self._arguments(layout, task, devices) for task in tasks}
        several = Place(self._place.cwd, (sys.executable, "several.py"))
        return ended(several.start(json.dumps(jobs)), timeout=140)

    def _as_ranks(self, layout: str, task: str) -> Ended:
        ranks = self._place.ranks(2, one_gpu=True)
        return ended(ranks.start(*self._arguments(layout, task, 1)), timeout=140)

    def __enter__(self) -> Runs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


def write_prompts(folder: Path) -> None:
    """The prompts that `PROMPT_FILE` names."""
    text = "".join(f"{text_of(i)}\n" for i in range(PROMPTS))
    (folder / "prompts.txt").write_text(text, encoding="utf-8")


def same(run: Path, other: Path, capsys: Any) -> str:
    """`compare` finds the same answers; what it says."""
    capsys.readouterr()
    code = main(["compare", str(run), str(other)])
    said = str(capsys.readouterr().out)
    assert code == 0, said
    return said


def device_facts(run: Path) -> list[dict[str, Any]]:
    """What the status says of each device, in the order of ranks."""
    ranks = load(run / "status.json")["ranks"]
    return [device for rank in ranks for device in rank["devices"]]
