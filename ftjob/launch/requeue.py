"""When a job must drain because its time ends, and when coming back again is of no use.

Slurm's signal and the end of the job's time are two ways to the same drain (`launch/signals.py`);
slurm/job.sh has a drained job requeued, and `commands/run.py` ends one that gets nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ftjob.errors import ConfigError

END, RESTARTS = "SLURM_JOB_END_TIME", "SLURM_RESTART_COUNT"


def drain_moment(env: Mapping[str, str], drain_s: float, now: float) -> float | None:
    """When to drain, on the clock of time.time(): `drain_s` before the job's end, or in the middle
    of the time that is left where this is less than twice as much. None where there is no end.

    Raises:
        ConfigError: where the variable holds no number.
    """
    end = _number(env, END)
    return None if end is None else end - min(drain_s, max(0.0, end - now) / 2)


def stands_still(rows_of_attempts: Mapping[int, int], attempts: Sequence[int]) -> bool:
    """Whether the last two attempts have answered no row."""
    last = attempts[-2:]
    return len(last) == 2 and not any(rows_of_attempts.get(number) for number in last)


def has_come_back(env: Mapping[str, str]) -> bool:
    """Whether this job was requeued twice or more: then both attempts before were its own."""
    return (_number(env, RESTARTS) or 0) >= 2


STANDS_STILL = (
    "two attempts in a row ended without a new row, and a third would too: raise the time limit, "
    "or lower run.drain_s; then run the same command again"
)


def _number(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name)
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name}={text!r}: must be a number, of seconds or of times.") from None
