"""From a run folder to its results: merges the journals, computes the score, writes the report.

Reads nothing but the folder, so `python -m ftjob report RUN` and the run itself give the same
files. The last stop of every batch: samples.jsonl, results.json, report.html, report.md,
summary.txt, status.json.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from ftjob import __version__
from ftjob.config import JobConfig, build
from ftjob.errors import (
    BELOW_EXPECTATION,
    DONE,
    TOO_MANY_FAILED,
    UNREADABLE,
    ConfigError,
    RunFolderError,
    reading,
)
from ftjob.pipeline import wanted_share
from ftjob.results.entries import raw_lines
from ftjob.results.exports import export
from ftjob.results.folder import RunFolder, read_json_file, replaced, write_json, write_text
from ftjob.results.journal import History, read_history
from ftjob.results.pipeline import pipeline_facts, with_stages
from ftjob.results.statuses import attempt_facts, cause_text, merged_status, throughput
from ftjob.tasks import make_task
from ftjob.tasks.base import Summary, Task, is_answer

Json = dict[str, Any]
SHOWN_FAILURES = 50


def load_config(folder: RunFolder) -> JobConfig:
    """The resolved configuration of a run.

    Raises:
        RunFolderError: where config.yaml is absent or no longer valid.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = folder.file("config.yaml")
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(values, dict):
            raise ConfigError("not a mapping")
        return build({str(k): v for k, v in values.items()})
    except (OSError, YAMLError, OmegaConfBaseException, ConfigError) as error:
        raise RunFolderError(f"{path}: cannot be read: {error}") from None


def merge(folder: RunFolder, history: History) -> BinaryIO:
    """Write samples.jsonl: every journaled record once, in dataset order. Gives it to be read: by
    its name there may be another one soon, where `report` looks on while the run ends."""
    with replaced(folder.file("samples.jsonl")) as beside:
        with beside.open("wb") as file:
            for line in raw_lines(history.entries):
                file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return beside.open("rb")


def read_samples(path: Path) -> Iterator[Json]:
    """The records of a samples.jsonl.

    Raises:
        RunFolderError: with file and line, for a damaged one.
    """
    with reading(path), path.open("rb") as file:
        yield from _records(file, path)


def _records(file: BinaryIO, path: Path) -> Iterator[Json]:
    """The records of an open samples.jsonl, from its beginning."""
    with reading(path):
        file.seek(0)
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except ValueError:
                raise RunFolderError(f"{path}: line {number} is damaged") from None


@dataclass(frozen=True)
class Score:
    """A task's summary of a samples.jsonl, with what it was counted over."""

    summary: Summary
    answered: int
    skipped: int
    failed: int
    first_failed: list[Json]
    first_skipped: str
    rows_of_attempts: Mapping[int, int]


def score_samples(task: Task, samples: Iterable[Json], history: History) -> Score:
    """The score of all samples. Memory does not grow with their number."""
    counts = {"answered": 0, "skipped": 0, "failed": 0}
    first_failed: list[Json] = []
    first_skipped = ""

    def counted() -> Iterator[Json]:
        nonlocal first_skipped
        for sample in samples:
            first_skipped = first_skipped or sample.get("skipped", "")
            given = "answered" if is_answer(sample) else "skipped"
            counts["failed" if sample["error"] is not None else given] += 1
            if sample["error"] is not None and len(first_failed) < SHOWN_FAILURES:
                first_failed.append({k: sample[k] for k in ("line", "id", "error")})
            yield sample

    summary = task.summarise(counted())
    return Score(
        summary,
        **counts,
        first_failed=first_failed,
        first_skipped=first_skipped,
        rows_of_attempts=history.rows_of_attempts(),
    )


def verdict(config: JobConfig, score: Score) -> tuple[int, str | None]:
    """The exit code of a run that reached its end, and its reason."""
    if score.failed > config.run.max_failed:
        failed = f"{_rows(score.failed)} failed"
        return TOO_MANY_FAILED, f"{failed}, run.max_failed is {config.run.max_failed}"
    if score.skipped and not score.answered:
        bound = "dataset.max_source_tokens"
        change = "raise it" if bound in score.first_skipped else "lower decode.max_new_tokens"
        return UNREADABLE, (
            f"no row was answered: {_rows(score.skipped)} left out as too long "
            f"(dataset.too_long=skip). The first one, {score.first_skipped}: {change}, or cut rows "
            "off with dataset.too_long=truncate, in another run.dir"
        )
    for name, least in config.dataset.expect.items():
        value = score.summary.values.get(name)
        if value is None or value < least:
            found = "was not computed" if value is None else f"is {value:.6g}"
            return BELOW_EXPECTATION, f"{name} {found}, dataset.expect asks for {least:g}"
    return DONE, None


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def collect(folder: RunFolder) -> Score:
    """Merge the journals into samples.jsonl and score it."""
    history, path = read_history(folder), folder.file("samples.jsonl")
    with merge(folder, history) as file:
        config = load_config(folder)
        export(folder, config, _records(file, path))
        return score_samples(make_task(config), _records(file, path), history)


def finish(folder: RunFolder, score: Score, now: datetime | None = None) -> Json:
    """Write results.json and status.json; returns the results.

    Their `code` is the latest attempt's own where it did not reach the end, else what failed rows
    and expectations make of it; none where it still runs `now`, which None says it does not.
    """
    config = load_config(folder)
    status = merged_status(folder, now)
    code, cause = status["code"], cause_text(status["cause"])
    if code == DONE:
        code, cause = verdict(config, score)
    results = _results(folder, config, make_task(config), score, status)
    results.update(code=code, cause=cause, reached_end=status["code"] == DONE)
    if code is None:
        results["progress"] = _progress(config, score, status["ranks"])
    write_json(folder.file("results.json"), results)
    write_json(folder.file("status.json"), status | {"code": code, "cause": cause})
    return results


def write_report(folder: RunFolder, results: Json) -> None:
    """Render report.html, report.md and summary.txt."""
    from ftjob.results.page import render_html, render_markdown, render_summary

    environment = read_json_file(folder.file("environment.json"))
    config_yaml = folder.file("config.yaml").read_text(encoding="utf-8")
    write_text(folder.file("report.html"), render_html(results, config_yaml, environment))
    write_text(folder.file("report.md"), render_markdown(results, environment))
    write_text(folder.file("summary.txt"), render_summary(results))


def _results(folder: RunFolder, config: JobConfig, task: Task, score: Score, status: Json) -> Json:
    """results.json in lm-eval's shape, with what the page shows besides."""
    environment = read_json_file(folder.file("environment.json"))
    plan = read_json_file(folder.file("plan.json"))
    ranks = status["ranks"]
    phases, devices = with_stages(ranks)
    generates = config.dataset.generates
    wanted = None if generates else wanted_share(config.dataset)
    bubble = pipeline_facts(ranks, plan["model"], wanted)
    last, summary = ranks[-1], score.summary
    dataset = _dataset(ranks)
    figures: Json = {"alias": task.name}
    for name, value in summary.values.items():
        figures[f"{name},none"] = value
        if name in summary.stderrs:
            figures[f"{name}_stderr,none"] = summary.stderrs[name]
    figures["sample_len"] = score.answered
    expect = {
        name: {
            "minimum": least,
            "value": summary.values.get(name),
            "met": (summary.values.get(name) or 0.0) >= least,
        }
        for name, least in config.dataset.expect.items()
    }
    overrides = folder.file("overrides.txt").read_text(encoding="utf-8").splitlines()
    return {
        "ftjob": __version__,
        "run_dir": str(folder.path),
        "name": config.run.name or config.model.name,
        "date": last["started"],
        "git_hash": environment.get("git_hash"),
        "command": shlex.join(["python", "-m", "ftjob", *overrides]),
        "results": {task.name: figures},
        "mode": "generate" if generates else "score",
        "headline": list(task.headline),
        "metrics": {
            n: {
                "title": m.title,
                "unit": m.unit,
                "definition": m.definition,
                "higher_is_better": m.higher_is_better,
            }
            for n, m in task.metrics.items()
        },
        "intervals": {name: list(ends) for name, ends in summary.intervals.items()},
        "signatures": summary.signatures,
        "higher_is_better": {task.name: {n: m.higher_is_better for n, m in task.metrics.items()}},
        "n-samples": {task.name: {"original": dataset["total"], "effective": score.answered}},
        "dataset": {"source": dataset["name"], "rows": dataset["total"]}
        | ({"prefix": config.dataset.prefix} if config.dataset.prefix else {}),
        "failed": {
            "count": score.failed,
            "max_failed": config.run.max_failed,
            "first": score.first_failed,
        },
        "skipped": score.skipped,
        "expect": expect,
        "throughput": throughput(ranks),
        **({"pipeline": bubble} if bubble else {}),
        "phases": phases,
        "devices": devices,
        "attempts": [
            attempt_facts(ranks, number, score.rows_of_attempts.get(number, 0))
            for number in sorted({s["attempt"] for s in ranks})
        ],
        "model": plan["model"],
        "parallel": {k: plan["plan"][k] for k in ("tensor", "pipeline", "data")}
        | {"ranks": len(plan["plan"]["machine"]["devices_of_rank"])},
        "total_evaluation_time_seconds": sum(
            max(s["elapsed_s"] for s in ranks if s["attempt"] == number)
            for number in {s["attempt"] for s in ranks}
        ),
        # a run of an older ftjob has no warnings
        "notes": [*_notes(plan["model"], config), *plan.get("warnings", ()), *summary.notes],
        "charts": summary.charts,
        "tables": summary.tables,
    }


def _dataset(ranks: list[Json]) -> Json:
    """What is known of the data set: an attempt that died early has not seen it, one before it may
    have."""
    found: Json = max(
        (s["dataset"] for s in ranks), key=lambda d: (d["total"], d.get("whole", False))
    )
    return found


def rows_wanted(ranks: list[Json], limit: int | None) -> int | None:
    """How many rows a run is over, by its ranks' status; None before its data set was read
    through."""
    dataset = _dataset(ranks)
    wanted: int = dataset["total"] if limit is None else min(limit, dataset["total"])
    return wanted if dataset.get("whole") or wanted == limit else None


def _progress(config: JobConfig, score: Score, ranks: list[Json]) -> Json:
    """How far a run is that goes on: rows done, of how many, as far as that is known."""
    done = score.answered + score.skipped + score.failed
    return {"done": done, "of": rows_wanted(ranks, config.dataset.limit)}


def _notes(model: Json, config: JobConfig) -> list[str]:
    notes = []
    if model["random"]:
        notes.append("The weights are random: scores mean nothing, only speed and memory do.")
    if config.dataset.limit is not None:
        notes.append(f"Only the first {config.dataset.limit} rows were asked for (dataset.limit).")
    return notes
