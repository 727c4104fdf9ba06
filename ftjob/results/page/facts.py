"""Reads results.json into the facts a report states: the run's state, its scores, its tables.

Any part may be missing, because a run that died early still gets a report. The page, the
Markdown twin, summary.txt and the terminal all print these facts and decide nothing themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftjob.errors import BELOW_EXPECTATION, DONE, DRAINED, EXIT_CODES, TOO_MANY_FAILED, UNREADABLE
from ftjob.results.page.formats import limit, measured, number, real

# Runs that ended with these codes went through all of their rows.
COMPLETE = (DONE, TOO_MANY_FAILED, BELOW_EXPECTATION)


@dataclass(frozen=True)
class Score:
    """One metric of one task, as numbers and as text."""

    task: str
    name: str
    kept: str
    title: str
    unit: str
    definition: str
    better: str
    value: float | None
    stderr: float | None
    expectation: str = ""
    met: bool = True
    ends: tuple[float, float] | None = None
    signature: str = ""

    @property
    def about(self) -> str:
        """The definition, which way is better, and how it was computed, as sentences."""
        better = f"{self.better[:1].upper()}{self.better[1:]}." if self.better else ""
        signature = f"Signature: {self.signature}." if self.signature else ""
        return " ".join(text for text in (self.definition, better, signature) if text)

    @property
    def shown(self) -> str:
        """The value with its unit."""
        return measured(self.value, self.unit, self.stderr)

    @property
    def error(self) -> str:
        """The standard error with its unit; empty when there is none."""
        return "" if self.stderr is None else measured(self.stderr, self.unit, self.stderr)

    @property
    def interval(self) -> str:
        """The 95% interval: as measured, else by a normal approximation, where nothing goes below
        0 and no share above 1."""
        if self.ends is not None:
            return " to ".join(measured(end, self.unit, self.stderr) for end in self.ends)
        if self.value is None or self.stderr is None:
            return ""
        low, high = max(0.0, self.value - 1.96 * self.stderr), self.value + 1.96 * self.stderr
        if self.unit == "%":
            high = min(1.0, high)
        return " to ".join(measured(end, self.unit, self.stderr) for end in (low, high))


@dataclass(frozen=True)
class State:
    """How the run ended, and whether its result counts."""

    code: int | None
    title: str
    meaning: str
    cause: str
    reasons: tuple[str, ...]

    @property
    def valid(self) -> bool:
        """True when nothing speaks against the result."""
        return not self.reasons

    @property
    def running(self) -> bool:
        """Whether there is no end yet, so nothing that could count or not."""
        return self.code is None

    @property
    def verdict(self) -> str:
        """VALID or INVALID, as MLPerf writes it, or RUNNING."""
        return "RUNNING" if self.running else "VALID" if self.valid else "INVALID"

    @property
    def sentence(self) -> str:
        """The verdict as a sentence."""
        return "No result yet." if self.running else f"Result {self.verdict.lower()}."


def part(results: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A mapping of results.json, empty when the run died before writing it."""
    value = results.get(key)
    return dict(value) if isinstance(value, Mapping) else {}


def items(results: Mapping[str, Any], key: str) -> list[Any]:
    """A list of results.json, empty when the run died before writing it."""
    value = results.get(key)
    return list(value) if isinstance(value, (list, tuple)) else []


def records(results: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """A list of mappings of results.json."""
    return [dict(item) for item in items(results, key) if isinstance(item, Mapping)]


def scores(results: Mapping[str, Any]) -> list[Score]:
    """Every metric of every task, headline metrics first and in their order."""
    headline = [str(name) for name in items(results, "headline")]
    found: list[Score] = []
    for task, values in part(results, "results").items():
        if isinstance(values, Mapping):
            alias = str(values.get("alias", task)).strip()
            found += [
                _score(results, alias, values, key)
                for key in values
                if "," in key and not key.split(",")[0].endswith("_stderr")
            ]
    rank = {name: i for i, name in enumerate(headline)}
    return sorted(found, key=lambda s: rank.get(s.name, len(rank)))


def _score(results: Mapping[str, Any], task: str, values: Mapping[str, Any], key: str) -> Score:
    name, _, kept = key.partition(",")
    about = part(part(results, "metrics"), name)
    title = str(about.get("title") or name.replace("_", " "))
    unit, value = str(about.get("unit") or ""), real(values.get(key))
    stderr = real(values.get(f"{name}_stderr,{kept}"))
    expectation, met = _expected(part(part(results, "expect"), name), unit)
    higher = about.get("higher_is_better")
    ends = [e for end in items(part(results, "intervals"), name) if (e := real(end)) is not None]
    return Score(
        task=task,
        name=name,
        kept="" if kept == "none" else kept,
        title=title if kept == "none" else f"{title} ({kept})",
        unit=unit,
        definition=str(about.get("definition") or ""),
        better="" if higher is None else f"{'higher' if higher else 'lower'} is better",
        value=value,
        stderr=stderr,
        expectation=expectation,
        met=met,
        ends=(ends[0], ends[1]) if len(ends) == 2 else None,
        signature=str(part(results, "signatures").get(name) or ""),
    )


def _expected(expect: Mapping[str, Any], unit: str) -> tuple[str, bool]:
    limits = [
        f"{word} {limit(expect[key], unit)}"
        for key, word in (("minimum", "at least"), ("maximum", "at most"))
        if real(expect.get(key)) is not None
    ]
    return " and ".join(limits), not expect or bool(expect.get("met"))


def headline(results: Mapping[str, Any]) -> list[Score]:
    """The scores to show largest, the first one first."""
    names = {str(name) for name in items(results, "headline")}
    return [score for score in scores(results) if score.name in names]


def state(results: Mapping[str, Any]) -> State:
    """How the run ended, and every reason why its result does not count; of one that goes on, where
    it runs and how far it is."""
    code = results["code"] if isinstance(results.get("code"), int) else None
    # a run that went through its rows ends so where it left out every one that did not fail
    none_left = code == UNREADABLE and bool(results.get("reached_end"))
    meaning, title = _ending(code, none_left)
    cause = str(results.get("cause") or "")
    if code is None:
        return State(code, title, meaning, "", (cause or meaning, *_progress(results)))
    reasons = [] if code in COMPLETE or none_left else [f"the run is incomplete: {meaning}"]
    failed = part(results, "failed")
    count, allowed = int(failed.get("count") or 0), int(failed.get("max_failed") or 0)
    if count > allowed:
        reasons.append(f"{number(count)} failed {'row' if count == 1 else 'rows'}, "
                       f"{number(allowed)} allowed")  # fmt: skip
    reasons += _missed(results)
    if code in COMPLETE and not reasons and _unmeasured(results):
        reasons.append("no headline score was measured")
    if code != DONE and not reasons:
        reasons.append(meaning)
    return State(code, title, meaning, cause, tuple(reasons))


def _progress(results: Mapping[str, Any]) -> list[str]:
    """How far a run is that goes on; nothing where it does not say."""
    progress = part(results, "progress")
    if not progress:
        return []
    done, wanted = number(progress.get("done")), real(progress.get("of"))
    if wanted is None:
        return [f"{done} rows are done; how many there are is not known yet"]
    return [f"{done} of {number(wanted)} rows are done"]


def _ending(code: int | None, none_left: bool) -> tuple[str, str]:
    if code is None:
        return "it has not ended", "Still running"
    title = "Finished" if code in COMPLETE else "Drained" if code == DRAINED else "Stopped early"
    meaning = EXIT_CODES.get(code, "ended by a signal or an unknown code")
    if none_left:
        title, meaning = "No row answered", "rows were left out as too long"
    return f"{meaning} (exit code {code})", f"{title} with exit code {code}" if code else title


def _missed(results: Mapping[str, Any]) -> list[str]:
    missed = []
    for name, expect in part(results, "expect").items():
        about = part(part(results, "metrics"), name)
        unit = str(about.get("unit") or "")
        limits, met = _expected(expect if isinstance(expect, Mapping) else {}, unit)
        if not met:
            value = real(expect.get("value"))
            got = "it was not measured" if value is None else f"it is {measured(value, unit)}"
            missed.append(f"{about.get('title') or name} was expected {limits}, {got}")
    return missed


def _unmeasured(results: Mapping[str, Any]) -> bool:
    return bool(items(results, "headline")) and all(s.value is None for s in headline(results))


def samples(results: Mapping[str, Any]) -> str:
    """How many rows were answered, or would have been, of how many; empty when unknown."""
    tasks, progress = part(results, "n-samples"), part(results, "progress")
    unknown = bool(progress) and real(progress.get("of")) is None
    texts = []
    for task, counts in tasks.items():
        if isinstance(counts, Mapping):
            of = f"{number(counts.get('effective'))} of {number(counts.get('original'))} rows"
            of += " read so far" if unknown else ""
            texts.append(of if len(tasks) == 1 else f"{task}: {of}")
    scored = any(score.value is not None for score in scores(results))
    word = "Planned" if not scored else "Generated" if generated(results) else "Scored"
    skipped = real(results.get("skipped"))
    texts += [f"{number(skipped)} left out"] if skipped else []
    return f"{word}: {', '.join(texts)}" if texts else ""


def generated(results: Mapping[str, Any]) -> bool:
    """Whether rows were continued; else their targets were scored."""
    return results.get("mode") == "generate"


def token_word(results: Mapping[str, Any]) -> str:
    """What the tokens are that speed counts."""
    return "output tokens" if generated(results) else "tokens"


def micro_batches(results: Mapping[str, Any]) -> str:
    """How many micro-batches a replica's stages got; empty where there were no stages."""
    counts = [n for n in items(part(results, "pipeline"), "micro_batches") if real(n) is not None]
    if not counts:
        return ""
    least, most = number(min(counts)), number(max(counts))
    word = "micro-batch" if most == "1" else "micro-batches"
    each = f"{least} {word}" if least == most else f"{least} to {most} {word}"
    return each if len(counts) == 1 else f"{each} a replica"


def phase_spans(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The phases that have a start. One without an end was cut off: it ends with its attempt."""
    spans = [p for p in records(results, "phases") if real(p.get("start_s")) is not None]
    last: dict[int, float] = {}
    for span in spans:
        attempt = span["attempt"] = int(span.get("attempt") or 0)
        known = real(span.get("end_s"))
        last[attempt] = max(last.get(attempt, 0.0), span["start_s"], known or 0.0)
    for span in spans:
        span["cut"] = real(span.get("end_s")) is None
        span["end_s"] = last[span["attempt"]] if span["cut"] else span["end_s"]
        span["name"] = str(span.get("name"))
    return spans


def lane_name(where: Mapping[str, Any]) -> str:
    """`rank 0`, `rank 0 device 1`, or `rank 0 device 1 (stage 1)` in a pipeline."""
    rank = f"rank {where.get('rank', 0)}"
    return rank if where.get("device") is None else f"{rank} {device_name(where)}"


def device_name(where: Mapping[str, Any]) -> str:
    """`device 1`, or `device 1 (stage 1)` in a pipeline."""
    stage = f" (stage {where['stage']})" if where.get("stage") is not None else ""
    return f"device {where.get('device')}{stage}"


def phase_times(results: Mapping[str, Any]) -> dict[tuple[int, str], dict[str, float]]:
    """Seconds per lane, for each (attempt, phase), in the order they began."""
    times: dict[tuple[int, str], dict[str, float]] = {}
    for span in sorted(phase_spans(results), key=lambda s: (s["attempt"], s["start_s"])):
        lanes = times.setdefault((span["attempt"], span["name"]), {})
        lane = lane_name(span)
        lanes[lane] = lanes.get(lane, 0.0) + span["end_s"] - span["start_s"]
    return times


def attempts_differ(results: Mapping[str, Any]) -> bool:
    """True when tables have to say which attempt a line belongs to."""
    seen = {int(r.get("attempt") or 0) for k in ("phases", "devices") for r in records(results, k)}
    return len(seen | {int(a.get("attempt") or 0) for a in records(results, "attempts")}) > 1
