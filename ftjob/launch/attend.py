"""Following a submitted job: its state from squeue, its progress from the run folder.

Only looks: a job that is not followed goes on as well. The end is what status.json says, and where
the job left none, what Slurm says of it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from ftjob.errors import BUG, DONE, INTERRUPTED
from ftjob.launch.slurm import Submitted
from ftjob.results.folder import SUBMISSION, read_json_file
from ftjob.results.page import render_terminal
from ftjob.results.statuses import merged_status, throughput
from ftjob.results.summary import collect, finish, rows_wanted, write_report

POLL_S = 1.0
# Slurm shows an end for a moment too where the job comes back.
SEEN_OVER = 3
OVER = frozenset(
    (
        *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"),
        *("OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "REVOKED"),
    )
)
GONE = "no longer known to Slurm"


@dataclass(frozen=True)
class State:
    """What Slurm says of a job; `code` is its batch script's exit code so far."""

    name: str
    reason: str
    code: int

    @property
    def over(self) -> bool:
        """Whether this is an end."""
        return self.name in OVER or self.name == GONE

    def __str__(self) -> str:
        return self.name if self.reason in ("None", "") else f"{self.name} ({self.reason})"


def ask_slurm(job_id: str) -> State | None:
    """The job's state; None where Slurm does not answer at the moment."""
    fields = "state:40,reason:60,exit_code:20"
    command = ["squeue", "-h", "-t", "all", "-j", job_id, "-O", fields]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    line = done.stdout.splitlines()[:1]
    if not line:
        return State(GONE, "", 0)
    name, reason, code = line[0][:40], line[0][40:100], line[0][100:]
    # wait(2)'s number: the exit code, or the signal below it
    number = int(code) if code.strip().isdigit() else 0
    return State(name.strip(), reason.strip(), number >> 8 or (128 + number if number else 0))


def attend(job: Submitted, every_s: float) -> int:
    """Print the job's state when it changes and its progress each `every_s` seconds, to its end.
    Returns the job's exit code; after Ctrl-C, which leaves it running, 130."""
    said, due, over = "", 0.0, 0
    try:
        while True:
            state = ask_slurm(job.job_id)
            if state is not None:
                over = over + 1 if state.over else 0
                if over == SEEN_OVER:
                    return _end(job, state)
                line = _progress(job)
                if str(state) != said or (line and time.monotonic() >= due):
                    said, due = str(state), time.monotonic() + every_s
                    _say(f"job={job.job_id} state={state}{line}")
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        _say(f"job {job.job_id} goes on without us; `scancel {job.job_id}` would end it")
        _say(f"its results: python -m ftjob report {job.folder.path}")
        return INTERRUPTED


def _say(text: str) -> None:
    print(f"ftjob: {text}", file=sys.stderr, flush=True)  # noqa: T201


def _progress(job: Submitted) -> str:
    """Rows, rates and the time left, as the newest attempt's status files say."""
    statuses = job.folder.statuses()
    if len(job.folder.attempts()) <= job.attempts or not statuses:
        return ""
    attempt = statuses[-1]["attempt"]
    done, failed = (sum(s[key] for s in statuses) for key in ("rows", "failed"))
    total = rows_wanted(statuses, job.limit)
    speed = throughput([s for s in statuses if s["attempt"] == attempt])
    rate = float(speed["rows_per_s"])
    eta = "?" if total is None or not rate else f"{max(0, total - done) / rate:.0f}s"
    return (
        f" attempt={attempt} rows={done}/{'?' if total is None else total} rows_per_s={rate:.1f} "
        f"tokens_per_s={float(speed['tokens_per_s']):.0f} eta={eta} failed={failed}"
    )


def _end(job: Submitted, state: State) -> int:
    """Tell how it ended, after the last rank; returns the job's code."""
    if len(job.folder.attempts()) <= job.attempts:
        return _never_began(job, state)
    status = merged_status(job.folder)
    path = job.folder.file("status.json")
    merged: dict[str, Any] = read_json_file(path) if path.exists() else {}
    if merged.get("attempt") != status["attempt"] or merged.get("code") is None:
        results = finish(job.folder, collect(job.folder))  # rank 0 died before it could
        write_report(job.folder, results)
        merged = read_json_file(path)
    found = int(merged["code"] if merged["code"] is not None else BUG)
    # the script's own end counts, which may be a refusal after the last attempt
    code = state.code if state.name in ("COMPLETED", "FAILED") else found
    why = merged["cause"]
    if code != found:
        why = "".join(_printed(job)[-1:]).removeprefix("ftjob: ")
    if code == DONE:
        print(render_terminal(read_json_file(job.folder.file("results.json"))))  # noqa: T201
    _say(f"job {job.job_id} is over: {state}; code {code}{f': {why}' if why else ''}")
    return code


def _printed(job: Submitted) -> list[str]:
    """What ftjob's rank 0 said in the job."""
    path = job.folder.file(SUBMISSION) / job.job_id / f"{job.job_id}_0_log.out"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return [line for line in text.splitlines() if line.startswith("ftjob: ")]


def _never_began(job: Submitted, state: State) -> int:
    """The code of a job that left nothing in the run folder; what it printed tells why."""
    for line in _printed(job):
        print(line, file=sys.stderr, flush=True)  # noqa: T201
    code = state.code or (DONE if state.name == "COMPLETED" else INTERRUPTED)
    code = code if state.name != GONE else BUG
    _say(f"job {job.job_id} is over: {state}; it answered nothing, code {code}")
    return code
