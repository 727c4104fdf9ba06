"""The model cut over a group of threads gives the whole model's logits, answers and int8 scales.

The arithmetic of tensor parallelism over the device threads' own groups.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gpt2_oracle import (
    CPU,
    job_config,
    open_stage,
    packed_logits,
    random_gpt2,
    random_rows,
    write_gpt2,
)
from thread_comm import run_group

from ftjob.batching import Chunk
from ftjob.comm import Comm, Solo
from ftjob.config import JobConfig, build
from ftjob.decode.scoring import score_chunk, token_stats
from ftjob.model.layers import Linear
from ftjob.model.packing import Packing
from ftjob.tasks.base import Row, Scored, ScoreRequest

LENGTHS = [1, 17, 40, 9, 16, 2]
SHAPES = {
    2: {"vocab_size": 61},
    3: {"n_head": 3, "vocab_size": 61, "n_inner": 36},
    4: {"vocab_size": 5},  # the last rank holds no true vocabulary at all
}
Stats = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(params=SHAPES, ids="T={}".format)
def cut_model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[int, JobConfig, int]:
    """A number of ranks, and the configuration and vocabulary of a model it can cut."""
    shape = SHAPES[request.param]
    write_gpt2(tmp_path, random_gpt2(**shape))
    return request.param, job_config(tmp_path), shape["vocab_size"]


def test_cut_model_gives_the_whole_models_logits(cut_model: tuple[int, JobConfig, int]) -> None:
    ways, config, vocab = cut_model
    rows = random_rows(LENGTHS, vocab)
    for start in (0, -1):
        wanted_from = [start % n for n in LENGTHS]
        whole = packed_logits(open_stage(config), rows, wanted_from)
        cut = run_group(ways, lambda c: packed_logits(open_stage(config, c), rows, wanted_from))  # noqa: B023
        for row, wanted in enumerate(whole):
            joined = torch.cat([part[row] for part in cut], dim=1)
            assert joined.shape[1] == ways * -(-vocab // ways)
            torch.testing.assert_close(joined[:, :vocab], wanted, rtol=0.0, atol=1e-5)
            assert bool((joined[:, vocab:] == -torch.inf).all())


def test_cut_model_gives_the_whole_models_answers(cut_model: tuple[int, JobConfig, int]) -> None:
    ways, config, vocab = cut_model
    rows = random_rows([n + 1 for n in LENGTHS if n < 40], vocab)
    chunk = Chunk(0, tuple(ScoreRequest(Row(0, 1, b"", ""), "", r, 1, 1) for r in rows))

    def answers(group: Comm) -> list[Scored]:
        scoring = score_chunk(open_stage(config, group), chunk, CPU, lambda: None)
        return scoring.answers(lambda: None)

    whole = answers(Solo())
    for rank in run_group(ways, answers):
        for scored, wanted in zip(rank, whole, strict=True):
            assert scored.logprobs == pytest.approx(wanted.logprobs, abs=1e-5)
            assert scored.best == wanted.best
            assert scored.gaps == pytest.approx(wanted.gaps, abs=2e-5)


def test_cut_and_staged_model_gives_the_whole_models_logits(tmp_path: Path) -> None:
    write_gpt2(tmp_path, random_gpt2(n_layer=3))
    config, lengths = job_config(tmp_path), [9, 4, 1]
    rows = random_rows(lengths, 61)
    packing = Packing.of(lengths, [0, 0, 0], CPU)

    @torch.inference_mode()
    def staged(group: Comm) -> torch.Tensor:
        stages = [open_stage(config, group, pipeline=2, at=i) for i in range(2)]
        x = stages[0](torch.tensor([t for r in rows for t in r]), packing, lambda: None)
        return stages[1].logits(stages[1](x, packing, lambda: None))

    joined = torch.cat(run_group(2, staged), dim=1)[:, :61]
    whole = torch.cat(packed_logits(open_stage(config), rows, [0, 0, 0]))
    torch.testing.assert_close(joined, whole, rtol=0.0, atol=1e-5)


def cut_stats(logits: torch.Tensor, targets: torch.Tensor, ways: int) -> list[Stats]:
    """`token_stats` over a vocabulary padded and cut over a group, by rank."""
    columns = -(-logits.shape[1] // ways)
    padding = ways * columns - logits.shape[1]
    padded = torch.nn.functional.pad(logits, (0, padding), value=-torch.inf)

    def stats(comm: Comm) -> Stats:
        held = padded[:, comm.rank * columns : (comm.rank + 1) * columns].clone()
        return token_stats(held, targets, comm)

    return run_group(ways, stats)


@pytest.mark.parametrize("ways", [2, 3, 4])
def test_token_stats_agree_on_every_rank(ways: int) -> None:
    generator = torch.Generator().manual_seed(ways)
    logits = torch.randn(40, 21, generator=generator) * 3
    targets = torch.randint(21, (40,), generator=generator)
    whole = token_stats(logits.clone(), targets, Solo())
    for rank in cut_stats(logits, targets, ways):
        torch.testing.assert_close(rank[0], whole[0], rtol=0.0, atol=1e-5)
        assert torch.equal(rank[1], whole[1])
        assert torch.equal(rank[2], whole[2])


@pytest.mark.parametrize("ways", [2, 3, 4])
def test_ties_across_ranks_go_to_the_lowest_id(ways: int) -> None:
    tied = [[20, 1], [7, 6], [20, 19], [0, 20], [5, 10, 15, 20], list(range(21))]
    logits = torch.full((len(tied), 21), -3.0)
    for row, ids in enumerate(tied):
        logits[row, ids] = 2.0
    targets = torch.tensor([ids[0] for ids in tied])
    wanted = token_stats(logits.clone(), targets, Solo())
    assert wanted[1].tolist() == [min(ids) for ids in tied]
    for _, best, gaps in cut_stats(logits, targets, ways):
        assert best.tolist() == [min(ids) for ids in tied]
        assert gaps.tolist() == [0.0] * len(tied)


def test_gap_is_that_of_the_two_highest_over_all_ranks() -> None:
    logits = torch.zeros(3, 4)
    logits[0, :] = torch.tensor([5.0, 4.0, 1.0, 3.0])  # both on rank 0
    logits[1, :] = torch.tensor([5.0, 1.0, 4.5, 3.0])  # one on each
    logits[2, :] = torch.tensor([1.0, 2.0, 7.0, 4.0])  # both on rank 1
    for _, best, gaps in cut_stats(logits, torch.zeros(3, dtype=torch.int64), 2):
        assert best.tolist() == [0, 0, 2]
        assert gaps.tolist() == [1.0, 0.5, 3.0]


def test_padded_vocabulary_never_wins(cut_model: tuple[int, JobConfig, int]) -> None:
    ways, config, vocab = cut_model
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(64, 24, generator=generator)

    def logits(group: Comm) -> torch.Tensor:
        stage = open_stage(config, group)
        mean = stage.head_weight.mean(0)
        return stage.logits(hidden - 1e3 * mean)  # padding's zero rows would be the highest

    with torch.inference_mode():
        joined = torch.cat(run_group(ways, logits), dim=1)
    assert joined.shape[1] > vocab
    assert int(joined.argmax(dim=1).max()) < vocab


def int8_layers(stage: Any) -> dict[str, Linear]:
    return {name: m for name, m in stage.named_modules() if isinstance(m, Linear)}


@pytest.mark.parametrize("ways", [2, 4])
def test_int8_of_any_cut_rounds_alike(tmp_path: Path, ways: int) -> None:
    write_gpt2(tmp_path, random_gpt2(n_inner=40))
    config = job_config(tmp_path, weights="int8")
    whole = int8_layers(open_stage(config))
    cut = run_group(ways, lambda comm: int8_layers(open_stage(config, comm)))
    assert len(whole) == 2 * 4
    for name, layer in whole.items():
        parts = [rank[name] for rank in cut]
        assert {p.weight.dtype for p in parts} == {torch.int8}
        if name.endswith(("attention.out", "mlp.down")):  # row parallel: the input axis is cut
            assert all(torch.equal(p.scale, layer.scale) for p in parts)
            assert torch.equal(torch.cat([p.weight for p in parts], dim=1), layer.weight)
            continue
        fused = 3 if name.endswith("qkv") else 1
        for kind in ("scale", "weight"):
            thirds = [getattr(p, kind).chunk(fused) for p in parts]
            joined = torch.cat([p[f] for f in range(fused) for p in thirds])
            assert torch.equal(joined, getattr(layer, kind)), f"{name}.{kind}"


def test_int8_cut_model_gives_the_whole_models_logits(tmp_path: Path) -> None:
    write_gpt2(tmp_path, random_gpt2())
    config: JobConfig = build(
        {"model": {"checkpoint": str(tmp_path), "weights": "int8"}, "parallel": {"tensor": 2}}
    )
    rows = random_rows(LENGTHS, 61)
    starts = [0] * len(rows)
    cut = run_group(2, lambda c: torch.cat(packed_logits(open_stage(config, c), rows, starts)))
    whole = torch.cat(packed_logits(open_stage(config), rows, starts))
    torch.testing.assert_close(torch.cat(cut, dim=1)[:, :61], whole, rtol=0.0, atol=1e-4)
