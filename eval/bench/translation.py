"""The contenders of CPU translation: each translates the same rows, from token ids to token ids.

All take what `read_material` made ready before the clock runs. Quality is BLEU; tokens are the new
ones of the best hypothesis, the end token included and the start token not.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.bench.contender import Kinds, Outcome, Runner
from eval.bench.converted import convert, token_texts
from eval.bench.devices import Devices, layout_overrides
from ftjob.batching import chunks
from ftjob.checkpoint.resolve import demo_file
from ftjob.config.compose import compose
from ftjob.job import prepare
from ftjob.launch.world import World, make_machine
from ftjob.tasks.base import GenerateRequest, Row
from ftjob.tasks.rows import RowSource
from ftjob.tokenizer import Tokenizer, open_tokenizer

ROWS = 512
MAX_NEW_TOKENS = 80
PREFIX = "translate English to German: "
# ids of the new tokens of each row, in the order of the rows
Answers = list[list[int]]


@dataclass(frozen=True)
class Material:
    """The demo T5's folder, the rows as token ids (each ends with the end token) and references."""

    folder: Path
    tokenizer: Tokenizer
    end: int
    ids: list[list[int]]
    references: list[str]

    def runner(
        self,
        run: Callable[[], Any],
        answers: Callable[[Any], Answers],
        ready: Callable[[], None] = lambda: None,
    ) -> Runner:
        """A contender whose `run` is timed; `answers` makes ids of what it gives, untimed."""

        def judge(found: Any) -> Outcome:
            from sacrebleu import corpus_bleu

            ids = answers(found)
            texts = [self.tokenizer.decode([t for t in row if t != self.end]) for row in ids]
            bleu = corpus_bleu(texts, [self.references]).score
            return Outcome(sum(map(len, ids)), round(bleu, 4))

        return Runner(run, judge, ready)


def read_material(source: str = "", target: str = "") -> Material:
    """The first rows of two text files, or else of the data set that the job reads."""
    folder = demo_file("demo_t5")
    tokenizer = open_tokenizer(None, folder)
    end = int(json.loads((folder / "config.json").read_text())["eos_token_id"])
    if source:
        lines = [Path(f).read_text(encoding="utf-8").splitlines()[:ROWS] for f in (source, target)]
        texts, references = ([line.strip() for line in side] for side in lines)
    else:
        dataset = compose(["dataset=multi30k_en_de", f"dataset.limit={ROWS}"]).dataset
        rows = list(RowSource(dataset).rows())
        texts, references = [r.text or "" for r in rows], [r.target or "" for r in rows]
    ids = [[*row, end] for row in tokenizer.encode([PREFIX + text for text in texts])]
    return Material(folder, tokenizer, end, ids, references)


def ftjob(layout: str, beams: str, *data: str) -> Runner:
    """ftjob's device threads in a layout."""
    material = read_material(*data)
    run, ready = _job(material, layout, beams, range(len(material.ids)))
    return material.runner(run, lambda found: [found[i] for i in range(len(found))], ready)


def ftjob_ranks(count: str, beams: str, *data: str) -> Runner:
    """As many processes of one device, as `mpirun -n COUNT` has them. The rows in order of length
    are dealt out there and back, so that all have as much to do."""
    material, context = read_material(*data), multiprocessing.get_context("spawn")
    pipes = []
    for rank in range(int(count)):
        ours, theirs = context.Pipe()
        about = (theirs, rank, int(count), beams, data)
        context.Process(target=_serve, args=about, daemon=True).start()
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()

    def run() -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for pipe in pipes:
            pipe.send("go")
        for pipe in pipes:
            found |= pipe.recv()
        return found

    def ready() -> None:
        for pipe in pipes:
            pipe.send("ready")
        for pipe in pipes:
            pipe.recv()

    return material.runner(run, lambda found: [found[i] for i in range(len(found))], ready)


def _serve(pipe: Any, rank: int, count: int, beams: str, data: tuple[str, ...]) -> None:
    """The process of one rank."""
    material = read_material(*data)
    order = _longest_first(material.ids)
    turn = 2 * count
    mine = [i for n, i in enumerate(order) if rank in (n % turn, turn - 1 - n % turn)]
    run, ready = _job(material, "t1p1d1", beams, mine)
    pipe.send(None)
    with suppress(EOFError):  # the benchmark has ended
        while True:
            pipe.send(run() if pipe.recv() == "go" else ready())


def _job(
    material: Material, layout: str, beams: str, rows: Sequence[int]
) -> tuple[Callable[[], dict[int, list[int]]], Callable[[], None]]:
    """What runs these rows through the devices of a layout, and what makes them ready before."""
    decode = [f"decode.beams={beams}", f"decode.max_new_tokens={MAX_NEW_TOKENS}"]
    config = compose(
        [
            "model=demo_t5",
            "dataset=demo_en_de",
            "cluster.device=cpu",
            *decode,
            *layout_overrides(layout),
        ]
    )
    job = prepare(config, make_machine(config.cluster, World(0, 1, "none"), {}))
    requests: list[Any] = [
        GenerateRequest(Row(i, i + 1, b"", ""), str(i), material.ids[i], MAX_NEW_TOKENS)
        for i in rows
    ]
    devices = Devices(job)

    def run() -> dict[int, list[int]]:
        formed = chunks(
            requests,
            window=config.batch.window,
            max_tokens=job.plan.max_tokens,
            by_length=True,
            generation=job.plan.generation,
        )
        return {r.row.index: g.hypotheses[0].ids for r, g in devices.answers(formed)}

    return run, devices.start


def transformers(size: str, beams: str, *data: str) -> Runner:
    """transformers' generate on padded batches of rows of like length."""
    import torch
    from transformers import T5ForConditionalGeneration

    material, batch = read_material(*data), int(size)
    model: Any = T5ForConditionalGeneration.from_pretrained(material.folder, dtype=torch.float32)
    model.eval()
    order = _longest_first(material.ids)

    @torch.inference_mode()
    def run() -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            ids = torch.zeros(len(rows), len(material.ids[rows[0]]), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for i, row in enumerate(rows):
                length = len(material.ids[row])
                ids[i, :length] = torch.tensor(material.ids[row])
                mask[i, :length] = 1
            made = model.generate(
                ids,
                attention_mask=mask,
                num_beams=int(beams),
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
            )
            found |= zip(rows, made[:, 1:].tolist(), strict=True)
        return found

    def answers(found: dict[int, list[int]]) -> Answers:
        return [_until(found[i], material.end) for i in range(len(order))]

    return material.runner(run, answers)


def ctranslate2(size: str, beams: str, workers: str, *data: str) -> Runner:
    """CTranslate2's translate_batch, which sorts by length itself: two threads on a batch or, with
    two workers, a thread each."""
    import ctranslate2

    material, count = read_material(*data), int(workers)
    folder = tempfile.mkdtemp()
    convert(material.folder, Path(folder))
    texts = token_texts(material.folder)
    id_of = {text: i for i, text in enumerate(texts)}
    rows = [[texts[t] for t in row] for row in material.ids]
    model = ctranslate2.Translator(
        folder,
        device="cpu",
        inter_threads=count,
        intra_threads=2 // count,
        compute_type="float32",
    )

    def run() -> list[Any]:
        found: list[Any] = model.translate_batch(
            rows,
            beam_size=int(beams),
            max_batch_size=int(size),
            max_decoding_length=MAX_NEW_TOKENS,
        )
        return found

    def answers(found: list[Any]) -> Answers:
        ids = [[id_of[text] for text in row.hypotheses[0]] for row in found]
        return [row if len(row) == MAX_NEW_TOKENS else [*row, material.end] for row in ids]

    return material.runner(run, answers)


def _longest_first(rows: Sequence[Sequence[int]]) -> list[int]:
    return sorted(range(len(rows)), key=lambda i: -len(rows[i]))


def _until(ids: list[int], end: int) -> list[int]:
    """The ids up to the first end token, what pads a batch left out."""
    return ids[: ids.index(end) + 1] if end in ids else ids


KINDS: Kinds = {
    "ftjob": ftjob,
    "ftjob_ranks": ftjob_ranks,
    "transformers": transformers,
    "ctranslate2": ctranslate2,
}
