"""A finished translation run, made without a model: a run folder as the ranks leave it, with the
shipped captions' references, words missing, as answers. Its report is that of any run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ftjob.config import build
from ftjob.results.folder import RunFolder, write_json, write_text
from ftjob.results.journal import JournalWriter
from ftjob.results.summary import collect, finish, write_report
from ftjob.tasks import make_task
from ftjob.tasks.base import Generated, GenerateRequest, Hypothesis, KeyMaker, ModelLimits
from ftjob.tasks.rows import RowSource

STARTED = "2026-01-02T03:04:05+00:00"
MODEL = {"name": "demo_t5", "hidden": 4, "ffn": 16, "vocab": 10, "random": False}


class Words:
    """An encoder that gives each word an id as it meets it."""

    def __init__(self) -> None:
        self.words: list[str] = ["</s>"]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        for word in (w for text in texts for w in text.split()):
            if word not in self.words:
                self.words.append(word)
        return [[self.words.index(w) for w in text.split()] for text in texts]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        return " ".join(self.words[i] for i in ids if i or not skip_special)


def translation_run(path: Path, **dataset: Any) -> dict[str, Any]:
    """Write the folder and its report; gives the results."""
    folder = RunFolder(path)
    config = build({
        "model": {"name": "demo_t5", "family": "t5", "checkpoint": "PATH"},
        "dataset": {"task": "translation", "path": "builtin:captions_en_de", "column": "source",
                    "max_source_tokens": 14, "too_long": "skip"} | dataset,
        "decode": {"beams": 2, "n_best": 2, "max_new_tokens": 80},
    })  # fmt: skip
    path.mkdir(parents=True)
    write_text(folder.file("config.yaml"), yaml.safe_dump(config.as_dict()))
    write_text(folder.file("overrides.txt"), "model=demo_t5\ndataset=demo_en_de\n")
    write_json(folder.file("environment.json"), {"host": "node1"})
    plan = {"tensor": 1, "pipeline": 2, "data": 1, "machine": {"devices_of_rank": [2]}}
    write_json(folder.file("plan.json"), {"model": MODEL, "plan": plan})
    source, encoder, keys = RowSource(config.dataset), Words(), KeyMaker("identity")
    rows = list(source.rows())
    task = make_task(config)
    limits = ModelLimits(None, 1 << 20, (0,), seq2seq=True)
    journal = JournalWriter(folder, 0, 0, "identity", {})
    prepared = task.prepare(rows, [keys.keyed(r)[1] for r in rows], encoder, limits)
    records = []
    for row, request in zip(rows, prepared, strict=True):
        if isinstance(request, dict):
            records.append(request)
            continue
        assert isinstance(request, GenerateRequest)
        (ids,) = encoder.encode([row.target or row.text or ""])
        less = ids[:1] + ids[2:] if row.index % 3 else ids
        found = [
            Hypothesis([*less, 0], -0.5, -5.0, "eos"),
            Hypothesis([*less[:-1], 0], -0.75, -6.0, "eos"),
        ]
        records.append(task.record(request, Generated(found, []), encoder))
    journal.append(records)
    journal.close()
    write_json(folder.status(0, 0), _status(source, records))
    results = finish(folder, collect(folder))
    write_report(folder, results)
    return results


def _status(source: RowSource, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Two stages that worked by turns: the first from 1 to 5 s, the second from 2 to 6 s."""
    answers = [r for r in records if r["finish_reason"] == "eos"]
    devices, phases = [], []
    for stage in (0, 1):
        spec = {"tensor": 0, "data": 0, "pipeline": stage, "first_layer": stage,
                "last_layer": stage + 1, "first": stage == 0, "last": stage == 1}  # fmt: skip
        devices.append({
            "rank": 0, "device": stage, "name": "cpu", "attempt": 0, "rows": len(answers),
            "tokens": sum(r["output_tokens"] for r in answers),
            "input_tokens": sum(r["tokens"] for r in answers),
            "chunks": 3, "largest_chunk": 99, "busy_s": 3.0, "weight_bytes": 10, "spec": spec,
        })  # fmt: skip
        for name, start in (("prefill", 1.0), ("decode", 2.0)):
            span = {"start_s": start + stage, "end_s": start + stage + 1.0 + 2.0 * (start > 1)}
            phases.append({"name": name, "device": stage, "rank": 0, "attempt": 0} | span)
    return {
        "rank": 0, "attempt": 0, "code": 0, "cause": None, "started": STARTED,
        "heartbeat": STARTED, "host": "node1", "pid": 1, "rows": len(records), "failed": 0,
        "dataset": {"name": source.name, "total": source.total}, "elapsed_s": 9.0,
        "phases": phases, "devices": devices,
    }  # fmt: skip
