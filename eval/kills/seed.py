"""One seed of the campaign: killed attempts, the attempt that ends, and the judgement of all.

Its outcome is one JSON object without a path of this machine. The run folder of a seed that failed
is kept, that of one that passed is removed.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from eval.kills.attempt import Attempt, Kill
from eval.kills.check import (
    answered_twice,
    check_codes,
    check_journals,
    check_samples,
    read_lines,
)
from eval.kills.draw import Layout, Shot, draw
from eval.kills.evidence import (
    Damage,
    answered,
    fence_problems,
    form_chunks,
    in_flight,
    phase_at,
    read_journals,
)
from eval.kills.work import DEADLINE_S, overrides
from ftjob.errors import DONE

Json = dict[str, Any]
# After the deadline: the devices give up, the report is written, the launcher ends its ranks.
GRACE_S = 8.0
SUB_DRAWS = 8


class Missed(Exception):
    """The first attempt was over before its shot's moment came."""


class Seed:
    """One seed in `work`, where rows.jsonl and reference/ are."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.seed = work, seed
        self.folder = work / f"seed{seed:04d}"
        self.run_folder = self.folder / "run"
        self.reference = read_lines(work / "reference" / "samples.jsonl")
        self.problems: list[str] = []
        self.missed = 0

    def run(self) -> Json:
        """Kill, resume, judge. Returns the outcome."""
        started = time.monotonic()
        for sub in range(SUB_DRAWS):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            try:
                attempts = self._attempts(sub)
                break
            except Missed:
                self.missed += 1
            except (Damage, OSError, ValueError, KeyError) as error:  # a folder that is not whole
                attempts = []
                self.problems.append(f"{type(error).__name__}: {error}")
                break
        else:
            attempts = []
            self.problems.append(f"the moment was missed {SUB_DRAWS} times")
        outcome = {
            "seed": self.seed,
            "missed": self.missed,
            "attempts": attempts,
            "codes": self._codes(),
            "twice": answered_twice(read_journals(self.run_folder)) if attempts else 0,
            "seconds": round(time.monotonic() - started, 1),
            "problems": [p.replace(str(self.work), "DIR") for p in self.problems],
        }
        if not self.problems:
            shutil.rmtree(self.folder)
        return outcome

    def _attempts(self, sub: int) -> list[Json]:
        """The killed attempts, then the one that ends; a problem ends the seed early."""
        drawn = draw(self.seed, sub)
        made: list[Json] = []
        for shot in drawn.shots:
            made.append(self._killed(len(made), drawn.layouts[len(made)], shot))
            if self.problems:
                return made
            if made[-1]["kill"] is None:
                if len(made) == 1:
                    raise Missed
                self.missed += 1
                break
        else:
            made.append(self._ended(len(made), drawn.layouts[len(made)]))
        if not self.problems:
            self._judge(made)
            phases = [m["kill"]["phase"] for m in made if m["kill"]]
            self.problems += check_codes(self.run_folder, phases)
        return made

    def _start(self, number: int, layout: Layout) -> Attempt:
        done = self._done()
        missing = sum(r["error"] is None and r["index"] not in done for r in self.reference)
        arguments = overrides(self.work / "rows.jsonl", self.run_folder)
        output = self.folder / f"attempt{number}.txt"
        return Attempt(self.run_folder, number, layout, arguments, missing, output)

    def _done(self) -> set[int]:
        return set(answered(read_journals(self.run_folder)))

    def _killed(self, number: int, layout: Layout, shot: Shot) -> Json:
        """One attempt up to its kill, if it was not over before."""
        before = self._done()
        with self._start(number, layout) as attempt:
            kill = attempt.strike(shot, DEADLINE_S + GRACE_S)
            if kill is None:
                return self._over(number, layout, attempt)
            if kill.gone_s is None:
                limit = f"{DEADLINE_S + GRACE_S:g} s"
                self.problems.append(f"attempt {number}: not all processes gone within {limit}")
        return {
            "layout": layout.as_dict(),
            "target": shot.phase,
            "exit": attempt.process.returncode,
            "kill": self._evidence(number, layout, shot, kill, before),
        }

    def _evidence(
        self, number: int, layout: Layout, shot: Shot, kill: Kill, before: set[int]
    ) -> Json:
        """What the disk says of a kill."""
        final = read_journals(self.run_folder)
        self.problems += fence_problems(final)
        journals = read_journals(self.run_folder, kill.sizes)
        mine = set(answered(journals, number))
        began = any(r["error"] is None for j in journals if j.attempt == number for r in j.records)
        done = mine | before
        phase = phase_at(len(done), len(self.reference), began, kill.samples, kill.report)
        formed = form_chunks(self.reference, before, layout)
        flight = in_flight(formed, mine, layout)
        if flight.passed >= flight.allowed:
            self.problems.append(
                f"attempt {number}: {flight.passed} chunks unanswered before the last answered "
                f"one, of {flight.allowed} that may be in flight"
            )
        return {
            "phase": phase,
            "victim": shot.victim,
            "rank": shot.rank if shot.victim.startswith("rank") else None,
            "done": len(done),
            "in_flight": flight.rows if phase == "score" else 0,
            "later": len(set(answered(final, number)) - mine),
            "torn": sum(j.torn for j in final if j.attempt == number),
            "gone_s": None if kill.gone_s is None else round(kill.gone_s, 2),
        }

    def _ended(self, number: int, layout: Layout) -> Json:
        """The attempt that nobody disturbs."""
        with self._start(number, layout) as attempt:
            return self._over(number, layout, attempt)

    def _over(self, number: int, layout: Layout, attempt: Attempt) -> Json:
        """An attempt that ended by itself must have ended well."""
        code = attempt.wait()
        if code != DONE:
            self.problems.append(f"attempt {number}, undisturbed, ended with {code}")
        return {"layout": layout.as_dict(), "target": None, "exit": code, "kill": None}

    def _judge(self, made: list[Json]) -> None:
        """What must hold in the end."""
        journals = read_journals(self.run_folder)
        flying = sum(m["kill"]["in_flight"] for m in made if m["kill"])
        self.problems += fence_problems(journals)
        self.problems += check_journals(journals, len(self.reference), flying)
        self.problems += check_samples(self.work / "reference", self.run_folder, journals)

    def _codes(self) -> list[int]:
        """Each attempt's code by results.json, as far as there is one."""
        path = self.run_folder / "results.json"
        if not path.exists():
            return []
        return [a["code"] for a in json.loads(path.read_bytes())["attempts"]]
