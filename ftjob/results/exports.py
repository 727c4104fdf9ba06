"""The answers in other formats beside samples.jsonl: OpenAI's batch files, Parquet.

`summary` calls it once the journals are merged; both stream, so that memory does not grow with the
rows. Nothing else reads these files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from ftjob.config import JobConfig
from ftjob.config.dataset import file_kind
from ftjob.errors import writing
from ftjob.results.folder import RunFolder, replaced
from ftjob.results.openai_files import error_line, is_answered, output_line, requests_of

Json = dict[str, Any]

OUTPUT, ERRORS, PARQUET = "batch_output.jsonl", "batch_errors.jsonl", "samples.parquet"
ROWS_AT_ONCE = 8192


def export(folder: RunFolder, config: JobConfig, samples: Iterable[Json]) -> None:
    """Write what the run's rows or its configuration ask for: both batch files where a row was a
    request of OpenAI's, samples.parquet by `run.parquet`."""
    parquet = config.run.parquet
    if parquet is None:
        path = config.dataset.path
        parquet = path is not None and file_kind(path) == ".parquet"
    if config.dataset.task == "prompts":
        samples = _batch_files(folder, samples)
    if parquet:
        with replaced(folder.file(PARQUET)) as beside:
            _write_parquet(beside, samples)
    for _ in samples:  # what is not written goes by
        pass


def _batch_files(folder: RunFolder, samples: Iterable[Json]) -> Iterator[Json]:
    """The samples again; requests of OpenAI's are written, as soon as all their prompts are
    there."""
    created = _begun(folder)
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for sample, request in requests_of(samples):
            if request is not None:
                if not files:
                    for name in (OUTPUT, ERRORS):
                        beside = stack.enter_context(replaced(folder.file(name)))
                        files[name] = stack.enter_context(beside.open("w", encoding="utf-8"))
                answered = is_answered(request)
                line = output_line(request, created) if answered else error_line(request)
                name = OUTPUT if answered else ERRORS
                with writing(folder.file(name)):
                    files[name].write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            yield sample


def _begun(folder: RunFolder) -> int:
    """When the run's first attempt began, in seconds since 1970."""
    started = min((status["started"] for status in folder.statuses()), default=None)
    return 0 if started is None else int(datetime.fromisoformat(started).timestamp())


def _write_parquet(path: Path, samples: Iterable[Json]) -> None:
    """The columns that every generating task has; a row without an answer has nulls there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids, reals = pa.list_(pa.int32()), pa.list_(pa.float64())
    answer = {
        "output": pa.string(),
        "output_ids": ids,
        "finish_reason": pa.string(),
        "cum_logprob": pa.float64(),
        "score": pa.float64(),
        "token_logprobs": reals,
    }
    columns = {
        "id": pa.string(),
        "key": pa.string(),
        "index": pa.int64(),
        "line": pa.int64(),
        "input": pa.string(),
        "prompt_ids": ids,
        "target": pa.string(),
        **answer,
        "prompt_logprob": pa.float64(),
        "hypotheses": pa.list_(pa.struct(answer)),
        "error": pa.string(),
        "near_ties": pa.list_(reals),
        "tokens": pa.int64(),
        "output_tokens": pa.int64(),
    }
    schema = pa.schema(columns)
    with pq.ParquetWriter(path, schema) as writer:
        for rows in _parts(samples):
            writer.write_table(pa.Table.from_pylist([_known(r, columns) for r in rows], schema))


def _known(record: Json, columns: Mapping[str, Any]) -> Json:
    return {name: record.get(name) for name in columns}


def _parts(samples: Iterable[Json]) -> Iterator[list[Json]]:
    part: list[Json] = []
    for sample in samples:
        part.append(sample)
        if len(part) == ROWS_AT_ONCE:
            yield part
            part = []
    if part:
        yield part
