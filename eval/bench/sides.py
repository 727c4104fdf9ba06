"""The sides of a pair in one session: the same work in one layout and in the other, in turn. What a
side fails with is recorded, and the others go on.

`h200_x2` asks for them; `launched` does whole runs of the command.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

from eval.bench import newstest
from eval.bench.campaign import free_memory, told
from eval.bench.devices import Devices
from eval.bench.passes import continued, nothing, one_pass, scored, translation_job
from eval.bench.peer import Timed
from eval.bench.scoring import lambada_job
from eval.bench.workloads_x2 import Pair, Side
from ftjob.bench.cells import BASE, Rows
from ftjob.bench.devices import LocalDevices
from ftjob.bench.measure import ready_phases, run_once, tokens_of
from ftjob.commands.bench import planned
from ftjob.config.compose import compose
from ftjob.telemetry import Phases


class Taking(Protocol):
    """A side that is ready: `turn` adds to its record, which `facts` gives."""

    def turn(self, counted: bool) -> None: ...

    def facts(self) -> dict[str, Any]: ...


class SizeSide:
    """A size of `ftjob bench` on device threads that stay warm."""

    def __init__(self, pair: Pair, side: Side, stack: ExitStack) -> None:
        ((self._job, self._cell),) = planned(compose([*BASE, *pair.overrides, *side.overrides]))
        self._rows, self._phases = Rows(self._job, self._cell), Phases()
        devices = stack.enter_context(LocalDevices(self._job, self._phases))
        self._timed = Timed(side.name, lambda chunks: run_once(devices, [chunks]))

    def turn(self, counted: bool) -> None:
        self._timed.turn(self._cell, self._rows, counted)

    def facts(self) -> dict[str, Any]:
        tokens, steps = tokens_of(self._job, self._cell), self._cell.output_len - 1
        made = self._timed.as_dict(self._cell)
        return {**made, "phases": ready_phases(self._phases), "tokens": tokens, "steps": steps}


class PassSide:
    """LAMBADA's rows, scored, or a set of rows to be continued, in passes."""

    def __init__(self, pair: Pair, side: Side, stack: ExitStack) -> None:
        overrides = (*pair.overrides, *side.overrides)
        if pair.kind == "lambada":
            job, once = lambada_job(overrides, os.environ)
            requests = [request for request in once for _ in range(pair.times)]
            self._devices = Devices(job)
            self._runner = scored(self._devices, requests)
            self._tokens = sum(len(r.ids) for r in requests)
        else:
            lengths = [newstest.Pair(pair.given, pair.new)] * pair.rows
            job = translation_job(overrides, lengths)
            ids = newstest.random_ids(lengths, job.source.arch.vocab)
            self._devices = Devices(job)
            self._runner = continued(self._devices, lengths, ids)
            self._tokens = pair.rows * pair.new
        stack.callback(self._devices.stop)
        self._made = nothing(side.name)

    def turn(self, counted: bool) -> None:
        seconds = one_pass(self._runner)
        if counted:
            self._made["seconds"].append(seconds)
        else:
            self._made["first_s"] = seconds

    def facts(self) -> dict[str, Any]:
        phases = ready_phases(self._devices.phases)
        return {**self._made, "phases": phases, "tokens": self._tokens, "steps": None}


def in_turn(
    pair: Pair, rounds: int, make: Callable[[Pair, Side, ExitStack], Taking]
) -> list[dict[str, Any]]:
    """What each side took in `rounds` rounds, after one that does not count. A side that fails has
    no other turn; its devices end with the rest."""
    errors: dict[str, str] = {}
    taking: dict[str, Taking] = {}
    with ExitStack() as stack:
        for side in pair.sides:
            free_memory()
            try:
                taking[side.name] = make(pair, side, stack)
                taking[side.name].turn(counted=False)
            except Exception as error:
                errors[side.name] = told(error)
        for _ in range(rounds):
            for side in pair.sides:
                if side.name in errors:
                    continue
                try:
                    taking[side.name].turn(counted=True)
                except Exception as error:
                    errors[side.name] = told(error)
        return [_facts(side, taking.get(side.name), errors) for side in pair.sides]


def _facts(side: Side, taking: Taking | None, errors: dict[str, str]) -> dict[str, Any]:
    if side.name in errors or taking is None:
        return {**nothing(side.name), "error": errors[side.name], "phases": {}}
    return taking.facts()
