"""What two runs' records can be compared in: without the fields that one run alone was asked for.

`compare` passes every pair of records through here. A field of all answers of one run and of none
of the other's was asked for in that one; a field that is there in some is a difference, and so is a
shorter list where the run has a longer one elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ftjob.tasks.base import is_answer

Record = dict[str, Any]
# Fields that decode.token_logprobs, decode.n_best and dataset.ngrams ask for; the last two are as
# long as the number says.
TOKEN_LOGPROBS, HYPOTHESES = "token_logprobs", "hypotheses"
ASKED_FOR = (TOKEN_LOGPROBS, HYPOTHESES, "ngrams")
LISTS = (HYPOTHESES, "ngrams")
RUNS = ("first", "second")


@dataclass
class _Seen:
    """A field over all rows so far, for each run: answers that have it, the length of its longest
    list, and length and place of the shortest one that is shorter than the other run's. `alone`
    is where first only one run had it."""

    holds: list[int] = field(default_factory=lambda: [0, 0])
    longest: list[int] = field(default_factory=lambda: [0, 0])
    shorter: list[tuple[int, str] | None] = field(default_factory=lambda: [None, None])
    alone: str | None = None


class Extras:
    """Reduces pairs of records to what both have, and keeps account of what was left out."""

    def __init__(self) -> None:
        self._answers = 0  # rows that both runs answered
        self._seen = {name: _Seen() for name in ASKED_FOR}

    def common(self, first: Record, second: Record) -> tuple[Record, Record]:
        """Both records without the fields, or the ends of lists, that only one of them has."""
        pair = [dict(first), dict(second)]
        if not (is_answer(first) and is_answer(second)):
            return pair[0], pair[1]
        where = f"row {first['index']} (line {first['line']})"
        self._answers += 1
        for name, seen in self._seen.items():
            held = [run for run in (0, 1) if name in pair[run]]
            for run in held:
                seen.holds[run] += 1
            if len(held) == 1:
                seen.alone = seen.alone or where
                del pair[held[0]][name]
                if name == TOKEN_LOGPROBS:
                    pair = [_without_token_logprobs(record) for record in pair]
            elif len(held) == 2 and name in LISTS:
                self._cut(seen, name, pair, where)
        return pair[0], pair[1]

    def _cut(self, seen: _Seen, name: str, pair: list[Record], where: str) -> None:
        """Give both lists the length of the shorter."""
        lengths = [len(record[name]) for record in pair]
        for run in (0, 1):
            seen.longest[run] = max(seen.longest[run], lengths[run])
        if lengths[0] != lengths[1]:
            least = min(lengths)
            run = lengths.index(least)
            before = seen.shorter[run]
            if before is None or least < before[0]:
                seen.shorter[run] = least, where
            for record in pair:
                record[name] = record[name][:least]

    def differences(self) -> list[str]:
        """Fields that a run has in some answers only, where the other run has it otherwise, and
        lists that end before a run's others do: one line a field."""
        found = []
        for name, seen in self._seen.items():
            if seen.alone is not None and not self._asked_for(seen):
                held = " / ".join(map(str, seen.holds))
                found.append(
                    f"{seen.alone}: {name}: in one run alone; {held} of {self._answers} answers "
                    "have it"
                )
            for run, shorter in enumerate(seen.shorter):
                if shorter is not None and shorter[0] < seen.longest[run]:
                    found.append(
                        f"{shorter[1]}: {name}: {shorter[0]} in the {RUNS[run]} run, which has "
                        f"{seen.longest[run]} elsewhere"
                    )
        return found

    def left_out(self) -> list[str]:
        """What one run alone was asked for, a line a field."""
        found = []
        for name, seen in self._seen.items():
            if seen.alone is not None and self._asked_for(seen):
                found.append(f"{name}, which only the {RUNS[not seen.holds[0]]} run has")
            for run, shorter in enumerate(seen.shorter):
                if shorter is not None and shorter[0] == seen.longest[run]:
                    found.append(
                        f"{name} after the first {shorter[0]}, which only the {RUNS[1 - run]} run "
                        "has"
                    )
        return found

    def _asked_for(self, seen: _Seen) -> bool:
        """Whether all answers of one run have the field and none of the other's."""
        return sorted(seen.holds) == [0, self._answers]


def _without_token_logprobs(record: Record) -> Record:
    """The record with hypotheses that have none."""
    if HYPOTHESES not in record:
        return record
    hypotheses = [{k: v for k, v in h.items() if k != TOKEN_LOGPROBS} for h in record[HYPOTHESES]]
    return record | {HYPOTHESES: hypotheses}
