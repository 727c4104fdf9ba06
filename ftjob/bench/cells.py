"""The sizes to time, and the job and rows of each: made as `run` makes a job, but for the data set.

The ids of the rows are random and no end token cuts an answer short, so every row is as long as
asked. `commands/bench.py` asks for the cells, `measure` runs them; nothing here imports torch.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ftjob.batching import Chunk, chunks, widest
from ftjob.config import JobConfig
from ftjob.config.groups import DecodeConfig
from ftjob.errors import ConfigError
from ftjob.job import Job, prepare
from ftjob.plan import Machine, check_length
from ftjob.tasks.base import GenerateRequest, Request, Row, ScoreRequest
from ftjob.tasks.generation import run_options
from ftjob.tokenizer import NONE
from ftjob.warm import to_continue

# What `compose` is told besides: a task that needs no rows at hand.
BASE = ("dataset=prompts", "dataset.path=rows-of-bench")


@dataclass(frozen=True)
class Cell:
    """One size. `short` is 1 where runs of one new token tell prefill from decode; 0 where a run
    makes no more anyway, or rows are scored."""

    batch: int
    input_len: int
    output_len: int
    short: int = 0

    def as_dict(self) -> dict[str, int]:
        """Plain values, for JSON."""
        return asdict(self)


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse data sets.

    Raises:
        ConfigError: with the override.
    """
    for override in overrides:
        if override.lstrip("+~").split("=")[0].split(".")[0] == "dataset":
            raise ConfigError(
                f"{override}: bench makes its own rows. Their number and sizes are bench.batch, "
                "bench.input_len and bench.output_len; bench.task=score scores them."
            )


def sizes_of(config: JobConfig, positions: int | None) -> list[Cell]:
    """Every size that the lists of bench.* ask for, of a model with so many positions."""
    bench = config.bench
    found = []
    for batch, new in itertools.product(_listed(bench.batch), _listed(bench.output_len)):
        lengths: tuple[int, ...]
        if isinstance(bench.input_len, str):
            room = 512 if positions is None else positions - new
            lengths = (max(1, min(512, room)),)
        else:
            lengths = _listed(bench.input_len)
        found += [Cell(batch, length, new) for length in lengths]
    return found


def _listed(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def cell_job(config: JobConfig, cell: Cell, machine: Machine) -> tuple[Job, Cell]:
    """The job that runs a size, and the size with its `short`.

    Raises:
        ConfigError: by name, for a size that the model or the memory has no room for, and for
            keys of other groups that ask for something else.
        CheckpointError: for a checkpoint that is absent or does not fit.
    """
    _check_keys(config, cell)
    generates = config.bench.task == "generate"
    lanes = config.decode.lanes if generates else 1
    # the prompts enter together, whatever a run would make of them
    tokens = cell.batch * cell.input_len
    batch, whole = config.batch, config.batch.max_tokens
    if generates:
        most = tokens if whole == "auto" else whole
        batch = replace(batch, lanes=cell.batch * lanes, max_tokens=most)
    made = replace(
        config,
        dataset=replace(config.dataset, mode="generate" if generates else "score"),
        decode=replace(config.decode, max_new_tokens=cell.output_len),
        batch=batch,
    )
    if config.model.checkpoint == "random":  # ids need no tokenizer
        made = replace(made, model=replace(made.model, tokenizer=NONE))
    try:
        job = prepare(made, machine)
    except ConfigError as error:
        if str(error).startswith("cluster.memory_gb"):  # of lanes that the user did not choose
            size = f"bench.batch={cell.batch} bench.input_len={cell.input_len}"
            raise ConfigError(f"{size}: {error}") from None
        raise
    arch = job.source.arch
    if not generates and arch.seq2seq:
        raise ConfigError(
            f"bench.task=score with model={config.model.name}: scoring is for decoder-only models, "
            "this one has an encoder. Use bench.task=generate."
        )
    if not arch.seq2seq:
        check_length(
            arch,
            cell.input_len + cell.output_len,
            f"bench.input_len={cell.input_len} + bench.output_len={cell.output_len}",
        )
    _check_memory(job, cell)
    if generates:
        room = job.plan.generation
        assert room is not None
        # all rows of a run enter at once
        job = replace(job, plan=replace(job.plan, generation=replace(room, refill=room.slots)))
        job = endless(job, cell.batch, cell.input_len, cell.output_len)
    return job, replace(cell, short=int(generates and cell.output_len > 1))


def endless(job: Job, rows: int, longest: int, new: int) -> Job:
    """The job without end tokens, and with a cache for no more than `rows` rows at once of
    `longest` tokens and `new` ones: a run's takes all memory, which would hide what these take and
    leave none to a peer in the same process."""
    source = replace(job.source, specials=replace(job.source.specials, ends=()))
    room = job.plan.generation
    assert room is not None
    # it enters before all others
    first = next(to_continue(source.arch, job.plan, job.config.decode, gpu=False))
    warm = widest(first.requests, room.beams)
    cells = max(warm, rows * (longest + room.beams * new))
    room = replace(room, cells=min(room.cells, cells))
    return replace(job, source=source, plan=replace(job.plan, generation=room))


def _check_keys(config: JobConfig, cell: Cell) -> None:
    """Refuse what contradicts the sizes of bench.*."""
    decode, batch, pipeline = config.decode, config.batch, config.parallel.pipeline
    if config.bench.task == "score":
        if decode.lanes > 1:
            raise ConfigError(
                f"decode.beams={decode.beams} decode.num_return_sequences="
                f"{decode.num_return_sequences} with bench.task=score: scoring decodes nothing."
            )
        return
    if decode.max_new_tokens != DecodeConfig().max_new_tokens:
        raise ConfigError(
            f"decode.max_new_tokens={decode.max_new_tokens}: here it is bench.output_len="
            f"{cell.output_len}."
        )
    for name in ("end_id", "stop_words"):
        if (value := getattr(decode, name)) is not None:
            raise ConfigError(
                f"decode.{name}={value}: bench makes every row bench.output_len long; nothing may "
                "end it before."
            )
    if pipeline > 1:
        raise ConfigError(
            f"parallel.pipeline={pipeline} with bench.task=generate: stages that have room wait "
            "for the next rows before they finish the last ones, so that a run has no end of its "
            "own. Use parallel.tensor or parallel.data, or bench.task=score."
        )
    if isinstance(batch.lanes, int) and batch.lanes != cell.batch * decode.lanes:
        raise ConfigError(
            f"batch.lanes={batch.lanes}: bench runs all rows at once, {cell.batch} of "
            f"{decode.lanes}. Leave it auto."
        )
    tokens = cell.batch * cell.input_len
    if isinstance(batch.max_tokens, int) and tokens > batch.max_tokens:
        raise ConfigError(
            f"batch.max_tokens={batch.max_tokens}: bench.batch={cell.batch} rows of "
            f"bench.input_len={cell.input_len} enter together, {tokens} tokens. Leave it auto, or "
            "take at least as many."
        )


def _check_memory(job: Job, cell: Cell) -> None:
    """Refuse rows that the plan has no room for, before anything loads."""
    plan, room = job.plan, job.plan.generation
    if room is None:
        need = max(d.weight_bytes for d in plan.devices) + plan.workspace_bytes
        if need > plan.machine.memory_bytes:
            raise ConfigError(
                f"cluster.memory_gb: weights and workspace take {need / 1e9:.3g} GB of a device, "
                f"which has {plan.machine.memory_bytes / 1e9:.3g} GB. Lower batch.max_tokens, or "
                "split the model."
            )
        return
    tokens = plan.row_tokens(cell.input_len, cell.output_len)
    fit = plan.rows_that_fit(tokens)
    if cell.batch > fit:
        raise ConfigError(
            f"bench.batch={cell.batch}: {fit} rows of {cell.input_len} + {room.beams} x "
            f"{cell.output_len} tokens fit the memory of a replica's devices, "
            f"{plan.machine.memory_bytes / 1e9:.3g} GB each ({plan.machine.memory_source})."
        )


class Rows:
    """Makes the chunks of run after run, of ids that are random but always the same."""

    def __init__(self, job: Job, cell: Cell) -> None:
        self._job, self._cell = job, cell
        self._options = run_options(job.config.decode, job.tokenizer, job.limits())
        self._random = random.Random(f"{job.config.bench.seed} {cell.batch} {cell.input_len}")
        self._chunks = self._rows = 0

    def chunks(self, new: int) -> list[list[Chunk]]:
        """For each replica the chunks of one run of `new` tokens a row. Continued rows enter as
        one chunk, all at once; scored ones are cut as a run cuts them."""
        plan, batch = self._job.plan, self._cell.batch
        found = []
        for _ in range(plan.data):
            rows = [self._row(new) for _ in range(batch)]
            parts = [tuple(rows)]
            if plan.generation is None:
                cut = chunks(rows, window=batch, max_tokens=plan.max_tokens, by_length=True)
                parts = [c.requests for c in cut]
            found.append([Chunk(self._chunks + i, part) for i, part in enumerate(parts)])
            self._chunks += len(parts)
        return found

    def _row(self, new: int) -> Request:
        number, self._rows = self._rows, self._rows + 1
        row = Row(number, number + 1, str(number).encode(), None)
        given = self._cell.input_len
        if self._job.plan.generation is None:
            return ScoreRequest(row, str(number), self._ids(given + new), given, given)
        return GenerateRequest(row, str(number), self._ids(given), new, options=self._options)

    def _ids(self, count: int) -> list[int]:
        return self._random.choices(range(self._job.source.arch.vocab), k=count)


def facts(job: Job) -> dict[str, Any]:
    """What a JSON file says of the job behind a size."""
    config, plan = job.config, job.plan
    return {
        "model": job.model_facts(),
        "task": config.bench.task,
        "decode": {
            k: v
            for k, v in asdict(config.decode).items()
            if v != getattr(DecodeConfig(), k) and k != "max_new_tokens"
        },
        "layout": {"tensor": plan.tensor, "pipeline": plan.pipeline, "data": plan.data},
        "device": plan.machine.device,
    }
