"""The rows still to be answered, as requests: the data set without what the journal holds.

Rank 0 only. Rows are prepared a window at a time, so that millions of them stream; rows that
are no requests are journaled at once. The requests go to `handout`, which forms chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ftjob.errors import ResumeRefused
from ftjob.job import Job
from ftjob.keyset import KeySet
from ftjob.link import Link
from ftjob.results.folder import RunFolder
from ftjob.tasks.base import KeyMaker, ModelLimits, Request, Row, Task
from ftjob.tasks.rows import RowSource
from ftjob.telemetry import Phases


class Feed:
    """The requests of one attempt. `refuse` takes the records of rows that are none: errors, and
    rows that the configuration leaves out."""

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        task: Task,
        limits: ModelLimits,
        identity: str,
        done: KeySet,
        phases: Phases,
        link: Link,
        refuse: Callable[[Sequence[dict[str, Any]]], None],
    ) -> None:
        self._job, self._folder, self._task, self._phases = job, folder, task, phases
        self._limits = limits
        self._identity, self._done = identity, done
        self._link, self._refuse = link, refuse
        self._source = RowSource(job.config.dataset)
        self.exhausted = False

    @property
    def name(self) -> str:
        """What the data set is called."""
        return self._source.name

    @property
    def total(self) -> int:
        """Rows of the data set passed so far, beyond dataset.limit too."""
        return self._source.total

    @property
    def wanted(self) -> int:
        """Rows the run shall answer, once the data set is exhausted."""
        limit = self._job.config.dataset.limit
        return min(self.total, limit or self.total)

    def requests(self) -> Iterator[Request]:
        """Every row that is missing.

        Raises:
            DataError: where the data set cannot be read.
            ResumeRefused: where rows answered before are no longer in it.
        """
        self._check_answered_rows()
        keys = KeyMaker(self._identity)
        window = self._job.config.batch.window
        rows: list[Row] = []
        names: list[str] = []
        reader = self._source.rows()
        while not self.exhausted:
            with self._phases.phase("read"), self._link.keepalive():
                for row in reader:
                    row, key = keys.keyed(row)
                    if self._done.take(key):
                        continue
                    rows.append(row)
                    names.append(key)
                    if len(rows) == window:
                        break
                prepared = self._task.prepare(rows, names, self._job.tokenizer, self._limits)
            if settled := [p for p in prepared if isinstance(p, dict)]:
                self._refuse(settled)
            self.exhausted = not rows
            yield from (p for p in prepared if not isinstance(p, dict))
            rows, names = [], []

    def _check_answered_rows(self) -> None:
        """Before anything new is answered: every row answered before must still be there."""
        if not len(self._done):
            return
        with self._phases.phase("read"), self._link.keepalive():
            keys, done = KeyMaker(self._identity), self._done.untaken()
            source = RowSource(self._job.config.dataset)
            for row in source.rows():
                done.take(keys.key(row.content))
        if done.left:
            raise ResumeRefused(
                f"{self._folder.path}: {done.left} rows answered there are not in {source.name} "
                "any more. Use the data set of the first attempt, or another run.dir."
            )
