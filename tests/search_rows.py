"""Rows for the tests of search: tiny random models of transformers, whose logits drive a `Search`
alone or in slots, and whose own `generate` says what must come out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    StoppingCriteria,
    StoppingCriteriaList,
    T5Config,
    T5ForConditionalGeneration,
)

from ftjob.comm import Comm, Solo
from ftjob.config.groups import DecodeConfig
from ftjob.config.options import RowOptions
from ftjob.decode.search import Search, SearchRow, make_search
from ftjob.tasks.base import Generated

CPU = torch.device("cpu")
VOCAB = 41
Ends = tuple[int, ...]


@dataclass(frozen=True)
class Line:
    """A row: its prompt or source, and the most new tokens."""

    ids: list[int]
    max_new_tokens: int
    options: RowOptions | None = None  # the run's
    draw: int = 0


class Oracle:
    """A tiny model with random weights, and the ids that end a row made likely by `bias`."""

    def __init__(self, kind: str, ends: Ends, bias: float, seed: int = 0) -> None:
        self.ends = ends
        self.seq2seq = kind == "t5"
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = _t5() if self.seq2seq else _gpt2()
            head = torch.nn.Linear(16, VOCAB)
            torch.nn.init.normal_(head.weight, std=0.6)
            torch.nn.init.zeros_(head.bias)
        with torch.no_grad():
            # a T5 this small repeats itself less, and ends sooner
            head.bias[list(ends)] += bias - 2 * self.seq2seq
        self.model.lm_head = head
        self.model.generation_config.eos_token_id = list(ends) or None
        self.model.generation_config.pad_token_id = 0
        self.model.eval()

    @torch.no_grad()
    def logits(self, line: Line, new: Sequence[Sequence[int]]) -> torch.Tensor:
        """The next token's logits [W, V] after the new tokens of each beam, without a cache."""
        if self.seq2seq:
            source = torch.tensor([line.ids]).expand(len(new), -1)
            out = self.model(
                input_ids=source, decoder_input_ids=torch.tensor([[0, *n] for n in new])
            )
        else:
            out = self.model(input_ids=torch.tensor([[*line.ids, *n] for n in new]))
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits

    def row(self, line: Line, decode: DecodeConfig) -> SearchRow:
        """What a search is told of the row."""
        context = [0] if self.seq2seq else line.ids
        return SearchRow(line.max_new_tokens, context, line.options or decode, line.draw)

    def logprobs(self, line: Line, new: list[int]) -> list[float]:
        """The log-probability of each new token."""
        steps = [self.logits(line, [new[:i]])[0].log_softmax(0) for i in range(len(new))]
        return [float(s[t]) for s, t in zip(steps, new, strict=True)]

    @torch.no_grad()
    def generate(self, line: Line, decode: DecodeConfig) -> list[tuple[list[int], float | None]]:
        """What transformers' own search gives: new tokens and score of each hypothesis."""
        beams: dict[str, Any] = {
            "repetition_penalty": decode.repetition_penalty,
            "no_repeat_ngram_size": decode.no_repeat_ngram,
            "min_new_tokens": decode.min_length,
        }
        if decode.bad_words:
            beams["bad_words_ids"] = [list(word) for word in decode.bad]
        if decode.stop_words:
            beams["stopping_criteria"] = StoppingCriteriaList([_Stops(decode.stops)])
        if decode.beams > 1:
            beams |= {
                "length_penalty": decode.length_penalty,
                "early_stopping": decode.early_stopping,
                "num_return_sequences": decode.n_best,
            }
        out = self.model.generate(
            torch.tensor([line.ids]),
            attention_mask=torch.ones(1, len(line.ids), dtype=torch.int64),
            do_sample=False,
            num_beams=decode.beams,
            max_new_tokens=line.max_new_tokens,
            return_dict_in_generate=True,
            output_scores=True,
            use_cache=False,
            **beams,
        )
        start = 1 if self.seq2seq else len(line.ids)
        scores = out.sequences_scores.tolist() if decode.beams > 1 else [None]
        return [
            (self._cut(ids, start, decode.stops), score)
            for ids, score in zip(out.sequences.tolist(), scores, strict=True)
        ]

    def _cut(self, ids: list[int], start: int, stops: Sequence[Sequence[int]]) -> list[int]:
        """The new tokens up to the one that ends them."""
        for at in range(start, len(ids)):
            behind = ids[: at + 1]
            if ids[at] in self.ends or any(behind[-len(w) :] == list(w) for w in stops):
                return ids[start : at + 1]
        return ids[start:]


class _Stops(StoppingCriteria):  # type: ignore[misc]
    """Words of several ids that end a sequence."""

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        self._words = [torch.tensor(word) for word in words]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        hit = torch.zeros(len(input_ids), dtype=torch.bool)
        for word in self._words:
            if len(word) <= input_ids.shape[1]:
                hit |= (input_ids[:, -len(word) :] == word).all(dim=1)
        return hit


def _gpt2() -> Any:
    shape: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 80}
    config = GPT2Config(
        vocab_size=VOCAB, initializer_range=0.5, bos_token_id=0, eos_token_id=0, **shape
    )
    config.tie_word_embeddings = False
    return GPT2LMHeadModel(config)


def _t5() -> Any:
    shape: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=VOCAB, decoder_start_token_id=0, dropout_rate=0.0, **shape)
    config.tie_word_embeddings = False
    return T5ForConditionalGeneration(config)


def lines(lengths: Sequence[int], limits: Sequence[int], seed: int = 1) -> list[Line]:
    """Rows of random ids."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Line(torch.randint(1, VOCAB, (n,), generator=generator).tolist(), limit)
        for n, limit in zip(lengths, limits, strict=True)
    ]


def own_part(logits: torch.Tensor, group: Comm, spare: int = 0) -> torch.Tensor:
    """The rank's columns of logits [M, V] padded to a multiple of the group, and `spare` beyond."""
    columns = -(-logits.shape[1] // group.size) + spare
    padding = group.size * columns - logits.shape[1]
    padded = torch.nn.functional.pad(logits, (0, padding), value=-torch.inf)
    return padded[:, group.rank * columns : (group.rank + 1) * columns].clone()


Cut = Callable[[torch.Tensor, Comm], torch.Tensor]


def whole(logits: torch.Tensor, group: Comm) -> torch.Tensor:
    """The vocabulary in one piece."""
    return logits


def run_slots(
    oracle: Oracle,
    rows: Sequence[Line],
    decode: DecodeConfig,
    *,
    slots: int = 1,
    look_every: int = 1,
    group: Comm | None = None,
    cut: Cut = whole,
    search: Search | None = None,
) -> list[Generated]:
    """The rows' answers by our search over `slots`, each row entering as soon as one is free, and
    `finished` seen only every so many steps. The beams' tokens are followed here."""
    group = group or Solo()
    search = search or make_search(decode, oracle.ends, slots, VOCAB, CPU, oracle.seq2seq)
    waiting, answers = deque(range(len(rows))), dict[int, Generated]()
    at_work: list[tuple[int, list[list[int]]]] = []
    step = 0
    while waiting or at_work:
        new = [waiting.popleft() for _ in range(min(slots - len(at_work), len(waiting)))]
        if new:
            search.enter(len(at_work), [oracle.row(rows[i], decode) for i in new])
            at_work += [(i, [[] for _ in range(search.beams)]) for i in new]
        logits = torch.cat([oracle.logits(rows[i], beams) for i, beams in at_work])
        chosen = search.advance(cut(logits, group), group)
        followed = zip(at_work, chosen.ids.tolist(), chosen.parents.tolist(), strict=True)
        at_work = [
            (i, [[*beams[p], t] for t, p in zip(ids, parents, strict=True)])
            for (i, beams), ids, parents in followed
        ]
        step += 1
        if step % look_every:
            continue
        for slot in reversed(range(len(at_work))):
            if chosen.finished[slot]:
                (answers[at_work[slot][0]],) = search.harvest([slot])()
                last = at_work.pop()
                if slot < len(at_work):
                    search.move([len(at_work)], [slot])
                    at_work[slot] = last
    return [answers[i] for i in range(len(rows))]
