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
from ftjob.tasks.base import KeyMaker, ModelLimits, Request, Row, Task, keyed
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
        window = self._job.config.batch.window
        rows: list[Row] = []
        names: list[str] = []
        reader = self._missing() if len(self._done) else self._every()
        while not self.exhausted:
            with self._phases.phase("read"), self._link.keepalive():
                for row, key in reader:
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

    def _every(self) -> Iterator[tuple[Row, str]]:
        """Every row with its key."""
        keys = KeyMaker(self._identity)
        return (keys.keyed(row) for row in self._source.rows())

    def _missing(self) -> Iterator[tuple[Row, str]]:
        """The rows that were not answered before, with their keys. Before anything new is answered
        all rows are looked at, for every one answered must still be there; what was is not made
        into a row again."""
        keys, done = KeyMaker(self._identity), self._done
        answered = bytearray()
        again: dict[int, int] = {}  # of the others, how many equal rows came before
        for row in RowSource(self._job.config.dataset).rows():
            row, key = keys.keyed(row)
            answered.append(done.take(key))
            if row.occurrence and not answered[-1]:
                again[row.index] = row.occurrence
        if done.left:
            raise ResumeRefused(
                f"{self._folder.path}: {done.left} rows answered there are not in "
                f"{self._source.name} any more. Use the data set of the first attempt, or another "
                "run.dir."
            )
        del keys, done
        self._done = KeySet()
        for row in self._source.rows(answered):
            yield keyed(self._identity, row, again.get(row.index, 0))
