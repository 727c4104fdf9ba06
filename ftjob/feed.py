"""The rows still to be answered, as requests: the data set without what the journal holds.

Rank 0 only. Rows are prepared a window at a time, so that millions of them stream; rows that
are no requests are journaled at once. The requests go to `handout`, which forms chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ftjob.errors import ResumeRefused
from ftjob.job import Job
from ftjob.link import Link
from ftjob.results.folder import RunFolder
from ftjob.results.seen import Before, Seen, SeenWriter
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
        before: Before,
        phases: Phases,
        link: Link,
        refuse: Callable[[Sequence[dict[str, Any]]], None],
    ) -> None:
        self._job, self._folder, self._task, self._phases = job, folder, task, phases
        self._limits = limits
        self._identity, self._before = identity, before
        self._link, self._refuse = link, refuse
        self._source = RowSource(job.config.dataset)
        self._writer: SeenWriter | None = None
        self._new = Seen()  # rows that are not yet written
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
        reader = self._missing()
        while not self.exhausted:
            with self._phases.phase("read"), self._link.keepalive():
                for row, key in reader:
                    rows.append(row)
                    names.append(key)
                    if len(rows) == window:
                        break
                self._write()
                prepared = self._task.prepare(rows, names, self._job.tokenizer, self._limits)
            if settled := [p for p in prepared if isinstance(p, dict)]:
                self._refuse(settled)
            self.exhausted = not rows
            yield from (p for p in prepared if not isinstance(p, dict))
            rows, names = [], []

    def _missing(self) -> Iterator[tuple[Row, str]]:
        """The rows that were not answered before, with their keys."""
        seen, done = self._before.seen, self._before.done
        answered, gone = (seen or Seen()).answered(done)
        if gone:  # no attempt has seen this data set, or what it wrote of it is lost
            seen = self._look()
            answered, gone = seen.answered(done)
        if gone:
            raise ResumeRefused(
                f"{self._folder.path}: {gone} rows answered there are not in "
                f"{self._source.name} any more. Use the data set of the first attempt, or another "
                "run.dir."
            )
        seen = seen or Seen()
        again, known = seen.again(answered), len(seen)
        keys = KeyMaker(self._identity, seen.occurrences(), self._note)
        self._open(known)
        self._before.forget()
        for row in self._source.rows(answered):
            if row.index < known:
                yield keyed(self._identity, row, again.get(row.index, 0))
            else:
                yield keys.keyed(row)

    def _look(self) -> Seen:
        """Every row of the data set: before anything new is answered, each one answered must be
        found there."""
        seen = Seen()
        keys = KeyMaker(self._identity, note=seen.add)
        for row in self._source.rows():
            keys.keyed(row)
        self._open(0)
        if self._writer is not None:
            self._writer.write(seen)
        return seen

    def _open(self, first: int) -> None:
        """Begin to write what is seen from row `first` on, if nothing is written yet."""
        data, attempt = self._before.data, self._phases.attempt
        if data is not None and self._writer is None:
            self._writer = SeenWriter(self._folder, attempt, self._identity, data, first)

    def _note(self, key: int, content: int) -> None:
        if self._writer is not None:
            self._new.add(key, content)

    def _write(self) -> None:
        """Bring to disk what was seen since the last time."""
        if self._writer is not None:
            self._writer.write(self._new)
            self._new = Seen()
