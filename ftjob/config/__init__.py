"""The job's configuration: declared in `groups`, composed from conf/ and the command line by
`compose`, checked by `build`. The result, a frozen `JobConfig`, is what `plan` and `rank` read.
"""

from __future__ import annotations

from ftjob.config.build import build
from ftjob.config.groups import GROUPS, JobConfig

__all__ = ["GROUPS", "JobConfig", "build"]
