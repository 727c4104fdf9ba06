"""Are two runs' answers the same? Field by field, real numbers within 1e-4 (1e-5 of their size
where that is more), near ties excused.

Fields that only one run was asked for are left out and named (`extras`).

Float32 products are not invariant to the batch, so a decision between two almost equal logits can
turn. A row may differ there only where it recorded the near tie itself, and only few rows may.

What a turned decision may change depends on how the row was answered:
- Teacher-forced scoring feeds the target whatever the model prefers: the id at that position alone.
- Greedy generation and draws feed what they chose: everything from that position on. Before it both
  runs had the same ids, so the first id that differs, in each of a row's drawn answers, must stand
  at a near tie itself.
- Beams may have differed in any token: two hypotheses that part at position 2 can swap places at
  step 30. So the first differing id may come before the tie. But up to the first tie both searches
  had the same beams and the same pool of finished hypotheses, which only longer ones can enter
  later, and a swap of two finished ones is recorded at the last token of the best: some answer of
  either run must reach past some tie.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftjob.results.extras import Extras
from ftjob.results.summary import read_samples

# A log-probability of -20 has passed through sums of many times its size: transformers' own float32
# is off its float64 by up to 5e-5 over 400 LAMBADA rows, so two exact implementations differ by up
# to 1.3e-4 there. Below 10 the absolute bound rules.
TOLERANCE = 1e-4
RELATIVE = 1e-5
# Timings and the wording of errors are no answers; ids of rows without an own id are keys, and
# keys hold the dtype and checkpoint, which two runs may state differently.
IGNORED = frozenset({"error", "key"})
# What a turned decision of teacher-forced scoring may change.
DECIDED = frozenset(
    {"correct", "last_token_correct", "output", "output_ids", "near_ties", "ngrams"}
)
# What one of generation may change: what was generated, and what is measured of it.
GENERATED = frozenset(
    {"correct", "last_token_correct", "output", "output_ids", "near_ties", "finish_reason"}
    | {"cum_logprob", "score", "token_logprobs", "hypotheses", "output_tokens", "chrf"}
)


@dataclass
class Comparison:
    """What was found. `allowed` is how many rows near ties may excuse: max(1, 0.1 %). `left_out`
    names the fields that were not compared, because only one of the runs has them."""

    rows: int = 0
    differences: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def allowed(self) -> int:
        """Rows that near ties may excuse."""
        return max(1, self.rows // 1000)

    @property
    def same(self) -> bool:
        """Whether the answers are the same."""
        return not self.differences and len(self.excused) <= self.allowed


def compare_runs(first: Path, second: Path) -> Comparison:
    """Compare two samples.jsonl files, both in dataset order."""
    return compare_samples(read_samples(first), read_samples(second))


def compare_samples(
    first: Iterable[dict[str, Any]], second: Iterable[dict[str, Any]]
) -> Comparison:
    """Compare two streams of records; each is read once."""
    found, extras = Comparison(), Extras()
    left, right = iter(first), iter(second)
    a, b = next(left, None), next(right, None)
    while a is not None or b is not None:
        index_a = a["index"] if a is not None else math.inf
        index_b = b["index"] if b is not None else math.inf
        if index_a == index_b:
            assert a is not None
            assert b is not None
            _compare_row(found, *extras.common(a, b))
        elif index_a < index_b:
            found.differences.append(f"row {index_a}: only in the first run")
        else:
            found.differences.append(f"row {index_b}: only in the second run")
        found.rows += 1
        if index_a <= index_b:
            a = _following(left, index_a, found, "first")
        if index_b <= index_a:
            b = _following(right, index_b, found, "second")
    found.differences += extras.differences()
    found.left_out = extras.left_out()
    return found


def _following(stream: Any, index: float, found: Comparison, which: str) -> dict[str, Any] | None:
    """The next record with a higher index; one that does not rise is a doubled row."""
    for record in stream:
        if record["index"] > index:
            following: dict[str, Any] = record
            return following
        found.differences.append(f"row {record['index']}: twice in the {which} run")
    return None


def _compare_row(found: Comparison, a: dict[str, Any], b: dict[str, Any]) -> None:
    keyed = a["id"] == a["key"] and b["id"] == b["key"]
    skip = IGNORED | ({"id"} if keyed else set())
    names = sorted({*a, *b} - skip - {"near_ties_elsewhere"})
    differing = [n for n in names if not _equal(a.get(n), b.get(n))]
    if (a["error"] is None) != (b["error"] is None):
        differing.append("error")
    if not differing or differing == ["near_ties"]:
        return  # a gap just above the threshold in one run and just below in the other
    where = f"row {a['index']} (line {a['line']})"
    ties = {int(p) for record in (a, b) for p, _ in record["near_ties"]}
    if "cum_logprob" in a and "cum_logprob" in b:
        reason = _turned_generation(a, b, set(differing), ties)
        if reason is not None:
            found.excused.append(f"{where}: {', '.join(differing)} {reason}")
            return
    turned = _positions(a["output_ids"], b["output_ids"])
    if "cum_logprob" not in a and set(differing) <= DECIDED and turned and turned <= ties:
        found.excused.append(f"{where}: {', '.join(differing)} at {sorted(turned)}")
        return
    if differing == ["ngrams"] and any(r.get("near_ties_elsewhere") for r in (a, b)):
        found.excused.append(f"{where}: ngrams, by a near tie outside the target")
        return
    shown = "; ".join(f"{n}: {_short(a.get(n))} / {_short(b.get(n))}" for n in differing)
    found.differences.append(f"{where}: {shown}")


def _turned_generation(
    a: dict[str, Any], b: dict[str, Any], differing: set[str], ties: set[int]
) -> str | None:
    """By which near tie two generated answers may differ; None where by none. Where the ids are
    equal nothing was turned, and numbers and texts must be equal too."""
    if a["output_ids"] != b["output_ids"]:
        free = GENERATED
    elif _reported(a) != _reported(b):
        free = frozenset({"hypotheses", "near_ties"})  # the best is the same, in all its figures
    else:
        return None
    if not differing <= free:
        return None
    if "score" in a and "score" in b:  # which is there with beams alone
        reach = max(len(ids) for ids in (*_reported(a), *_reported(b)))
        tie = min(ties, default=reach)
        return f"from a near tie at step {tie} on" if tie < reach else None
    firsts = []  # where each answer that differs first does
    for one, another in zip(_reported(a), _reported(b), strict=False):
        if one != another:
            first = min(_positions(one, another))
            if first >= min(len(one), len(another)) or first not in ties:
                return None
            firsts.append(first)
    same_number = len(_reported(a)) == len(_reported(b))
    return f"from a near tie at {firsts[0]} on" if firsts and same_number else None


def _reported(record: dict[str, Any]) -> list[list[int]]:
    """The ids of every hypothesis that a record holds."""
    return [record["output_ids"], *(h["output_ids"] for h in record.get("hypotheses", ()))]


def _positions(a: list[int], b: list[int]) -> set[int]:
    """Where two lists of ids differ; a different length differs everywhere beyond the shorter."""
    longer = max(len(a), len(b))
    return {i for i in range(longer) if a[i : i + 1] != b[i : i + 1]}


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        close = math.isclose(a, b, rel_tol=RELATIVE, abs_tol=TOLERANCE)
        return a == b or (close and (isinstance(a, float) or isinstance(b, float)))
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    return bool(a == b)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
