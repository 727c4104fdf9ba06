"""One seed of the campaign on Slurm: a job that meets its event, its end, and the judgement of all.

Everything about files and answers is judged as in the kill campaign (`eval/kills`); here are the
events, and which codes they may leave.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.kills.attempt import Kill, View
from eval.kills.draw import Layout
from eval.kills.evidence import journal_sizes
from eval.kills.seed import Missed, Seed
from eval.kills.work import DEADLINE_S, overrides
from eval.slurm_kills.draw import Draw, draw
from eval.slurm_kills.site import OVER, Job, Site
from ftjob.errors import DEADLINE, DONE, DRAINED, KILLED

Json = dict[str, Any]
# Slurm looks for lost nodes (SlurmdTimeout 10 s), gives a preempted job grace (10 s), and tells
# before it kills (KillWait 5 s).
SLURM_S = 35.0
LIMIT_S = 150.0
WATCH_S = 0.002


class SlurmSeed(Seed):
    """One seed in `work`, on some nodes of `site`."""

    def __init__(self, work: Path, seed: int, site: Site) -> None:
        super().__init__(work, seed)
        self.site = site

    def _attempts(self, sub: int) -> list[Json]:
        """The attempt that meets the event, and the one after it, if there is one."""
        drawn = draw(self.seed, sub)
        with self.site.part() as nodes:
            job = self._submit(nodes, drawn.first)
            try:
                made = self._struck(job, drawn)
                state, last = job.over(LIMIT_S), drawn.first
                if state != "COMPLETED" and not drawn.event.comes_back and not self.problems:
                    last = drawn.again
                    job = self._submit(nodes, last)
                    state = job.over(LIMIT_S)
                if state != "COMPLETED":
                    self.problems.append(f"the job's last state was {state}")
            finally:
                self.site.tool("scancel", job.job_id)
                job.over(30)
        if not self.problems:
            self._judge([made])
            self._judge_codes(drawn, made["kill"]["phase"])
        if len(self._codes()) == 1:
            return [made]
        return [made, {"layout": last.as_dict(), "target": None, "exit": DONE, "kill": None}]

    def _submit(self, nodes: list[str], layout: Layout) -> Job:
        arguments = overrides(self.work / "rows.jsonl", self.run_folder)
        output = self.folder / "job.txt"
        return self.site.start(nodes[: layout.ranks], [*arguments, *layout.overrides], output)

    def _struck(self, job: Job, drawn: Draw) -> Json:
        """The first attempt, up to the end of this run of the job."""
        view = View(self.run_folder, 0)
        wanted = len(self.reference) - sum(r["error"] is not None for r in self.reference)
        victim = job.nodes[drawn.shot.rank]
        self._await(job, lambda: view.begun)
        # all ranks are there; looking later would take too long
        ranks = self.site.ranks_on(victim, self.run_folder) if drawn.event.name == "rank" else []
        moments: dict[str, Callable[[], bool]] = {
            "load": lambda: True,
            "score": lambda: view.look() >= 1 + int(drawn.shot.moment * (wanted - 1)),
            "merge": lambda: view.look() >= wanted,
            "report": lambda: view.samples,
        }
        self._await(job, moments[drawn.shot.phase])
        spans = {"load": 0.8 * drawn.first.ranks, "score": 0.01, "merge": 0.0, "report": 0.5}
        time.sleep(drawn.shot.delay * spans[drawn.shot.phase])
        sizes, seen = journal_sizes(self.run_folder), (view.samples, view.report)
        self._strike(job, drawn.event.name, victim, ranks)
        gone = self._gone(job, drawn.event.name)
        if gone is None:
            limit = f"{DEADLINE_S + SLURM_S:g} s"
            self.problems.append(f"still running {limit} after {drawn.event.name}")
        if drawn.event.name in ("crash", "cut", "slurmd"):
            with self.site.lock:
                self.site.cluster.restore(victim)
        kill = Kill(sizes, *seen, gone_s=gone)
        evidence = self._evidence(0, drawn.first, drawn.shot, kill, set())
        evidence["rank"] = drawn.shot.rank if ranks else None
        return {
            "layout": drawn.first.as_dict(),
            "target": drawn.shot.phase,
            "exit": None,
            "kill": evidence,
        }

    def _await(self, job: Job, moment: Callable[[], bool]) -> None:
        """Wait for a moment.

        Raises:
            Missed: where the job was over before.
        """
        began = looked = time.monotonic()
        while not moment():
            now = time.monotonic()
            if now - looked > 1.0:
                looked = now
                if job.ask()[0] in OVER or now - began > LIMIT_S:
                    raise Missed
            time.sleep(WATCH_S)

    def _gone(self, job: Job, event: str) -> float | None:
        """How long until this run of the job was over; without slurmd Slurm does not hear of it."""
        if event != "slurmd":
            return job.ended_or_restarted(DEADLINE_S + SLURM_S)
        began = time.monotonic()
        while time.monotonic() - began < LIMIT_S:
            if (self.run_folder / "summary.txt").exists():
                return time.monotonic() - began
            time.sleep(0.05)
        return None

    def _strike(self, job: Job, event: str, node: str, ranks: list[int]) -> None:
        """Let it happen."""
        cluster, tool = self.site.cluster, self.site.tool
        if event == "rank":
            for pid in ranks:
                os.kill(pid, signal.SIGKILL)
        elif event == "crash":
            cluster.crash(node)
        elif event == "cut":
            cluster.cut(node)
        elif event == "slurmd":
            cluster.kill_slurmd(node)
        elif event == "drain signal":
            tool("scancel", "--signal=USR2", job.job_id)
        elif event == "scancel":
            tool("scancel", job.job_id)
        elif event == "requeue":
            tool("scontrol", "requeue", job.job_id)
        else:
            nodes = [f"--nodes={len(job.nodes)}", f"--nodelist={','.join(job.nodes)}"]
            tool("sbatch", "-p", "urgent", "--exclusive", *nodes, "-o", "/dev/null", "--wrap=true")

    def _judge_codes(self, drawn: Draw, phase: str) -> None:
        """Done now; before, what the event may leave. From the merge on the answers are complete,
        and the attempt may have ended well, or Slurm have killed it over its report. Imports may
        take longer than the 5 s (KillWait) that Slurm gives a job here before it kills it."""
        results = json.loads((self.run_folder / "results.json").read_bytes())
        status = json.loads((self.run_folder / "status.json").read_bytes())
        codes = [a["code"] for a in results["attempts"]]
        told = [f"{a['code']} ({a['cause']})" for a in results["attempts"]]
        if (results["code"], status["code"], codes[-1]) != (DONE, DONE, DONE):
            self.problems.append(f"codes {results['code']}, {status['code']}, attempts {told}")
        legal = drawn.event.codes
        late = phase not in ("load", "score")
        if late:
            legal = legal | {DONE, KILLED, DEADLINE}
        elif phase == "load" and DRAINED in legal:
            legal = legal | {KILLED}
        if drawn.event.name == "slurmd" or (late and len(codes) == 1):
            if codes != [DONE]:
                self.problems.append(f"{drawn.event.name}: attempts {told}, not one")
        elif len(codes) != 2 or codes[0] not in legal:
            self.problems.append(f"{drawn.event.name} in {phase}: attempts {told}")
