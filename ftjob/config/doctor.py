"""The keys of `python -m ftjob doctor`, a group of the configuration as those of `groups`.

`commands/doctor.py` reads them; a run ignores them.
"""

from __future__ import annotations

from dataclasses import dataclass

from ftjob.config.keys import key


@dataclass(frozen=True)
class DoctorConfig:
    """What `python -m ftjob doctor` does with what it finds."""

    out: str | None = key(None, "JSON file to write, with rates that plan can predict from")
