"""How transformers continues one row with its options: the generating half of `eval.oracle`.

Greedy and beam search are `generate`'s own. Draws cannot be equal, so a drawn answer is followed
instead: each of its tokens must be one that transformers' processed distribution can give, and its
log-probability is that distribution's before top_k and top_p.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation import logits_process as theirs

from ftjob.config.groups import DecodeConfig
from ftjob.config.options import DEFAULTS, RowOptions
from ftjob.tasks.base import FinishReason, Generated, GenerateRequest, Hypothesis

# Options that transformers has, that decide nothing without draws, or that only ask for figures.
KNOWN = (
    *("top_k", "top_p", "temperature", "repetition_penalty", "min_length", "no_repeat_ngram"),
    *("bad_words", "stop_words", "start_id", "end_id", "length_penalty", "n_best", "seed"),
    *("num_return_sequences", "token_logprobs", "prompt_logprob", "top_p_min"),
)


class Row:
    """A request and the model that answers it."""

    def __init__(self, model: Any, request: GenerateRequest, decode: DecodeConfig) -> None:
        self.model, self.request, self.decode = model, request, decode
        self.options = request.options
        self.seq2seq = bool(model.config.is_encoder_decoder)
        end = model.generation_config.eos_token_id
        default = end if isinstance(end, list) else [] if end is None else [end]
        self.ends = list(default if self.options.ends is None else self.options.ends)
        self._refuse()

    def _refuse(self) -> None:
        """Refuse options that transformers has not: nothing could be said of them.

        Raises:
            ValueError: naming them.
        """
        others = [
            f.name
            for f in dataclasses.fields(RowOptions)
            if f.name not in KNOWN and getattr(self.options, f.name) != getattr(DEFAULTS, f.name)
        ]
        if others or self.decode.convention != "hf":
            raise ValueError(
                f"the oracle continues rows as transformers does; decode.convention="
                f"{self.decode.convention}, and set besides: {', '.join(others) or '-'}"
            )

    def context(self) -> list[int]:
        """The tokens before the first new one, in the decoder."""
        if not self.seq2seq:
            return self.request.ids
        own = self.options.start_id
        return [self.model.config.decoder_start_token_id if own is None else own]

    def reason(self, ids: Sequence[int]) -> FinishReason:
        """How an answer ended."""
        if ids and ids[-1] in self.ends:
            return "eos"
        behind = [*self.context(), *ids]
        stopped = any(tuple(behind[-len(word) :]) == word for word in self.options.stops)
        return "stop" if stopped else "length"

    def ended(self, ids: Sequence[int]) -> list[int]:
        """An answer up to the first token that ends it."""
        for at in range(1, len(ids)):
            if self.reason(ids[:at]) != "length":
                return list(ids[:at])
        return list(ids)

    def hypothesis(self, ids: list[int], logprobs: list[float], score: float | None) -> Hypothesis:
        """An answer of these tokens."""
        total = math.fsum(logprobs)
        shown = logprobs if self.options.token_logprobs else None
        ranking = total if score is None else score
        return Hypothesis(ids, ranking, total, self.reason(ids), shown)


class _Stops(StoppingCriteria):
    """Ends sequences whose last tokens are a stop word."""

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        self._words = [list(word) for word in words]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        lanes = input_ids.tolist()
        return torch.tensor(
            [any(lane[-len(word) :] == word for word in self._words) for lane in lanes]
        )


@torch.inference_mode()
def searched(row: Row) -> Generated:
    """The answers of greedy or beam search, near ties left to the run's own record."""
    o, beams = row.options, row.decode.beams
    ids = torch.tensor([row.request.ids])
    asked: dict[str, Any] = {
        "repetition_penalty": o.repetition_penalty,
        "no_repeat_ngram_size": o.no_repeat_ngram,
        "min_new_tokens": o.min_length,
        "eos_token_id": row.ends or None,
        "pad_token_id": 0,
    }
    if o.bad_words:
        asked["bad_words_ids"] = [list(word) for word in o.bad]
    if o.stop_words:
        asked["stopping_criteria"] = StoppingCriteriaList([_Stops(o.stops)])
    if row.seq2seq:
        asked["decoder_start_token_id"] = row.context()[0]
    if beams > 1:
        asked |= {
            "length_penalty": o.length_penalty,
            "early_stopping": row.decode.early_stopping,
            "num_return_sequences": o.n_best,
        }
    made = row.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=beams,
        max_new_tokens=row.request.max_new_tokens,
        return_dict_in_generate=True,
        output_scores=True,
        **asked,
    )
    # what follows an answer's end fills the hypotheses up to one length
    if beams == 1:
        answer = row.ended(made.sequences[0, -len(made.scores) :].tolist())
        steps = zip(made.scores, answer, strict=False)
        logprobs = [float(scores[0].log_softmax(-1)[token]) for scores, token in steps]
        return Generated([row.hypothesis(answer, logprobs, None)], [])
    # processed log-probabilities, which are not made to sum to 1 again
    own = row.model.compute_transition_scores(made.sequences, made.scores, made.beam_indices)
    found: list[Hypothesis] = []
    for number, new in enumerate(made.sequences[:, -own.shape[1] :].tolist()):
        answer = row.ended(new)
        logprobs = own[number, : len(answer)].tolist()
        found.append(row.hypothesis(answer, logprobs, float(made.sequences_scores[number])))
    return Generated(found, [])


@torch.inference_mode()
def followed(row: Row, answers: Sequence[Sequence[int]]) -> Generated:
    """What transformers says of drawn answers: the same where it could have drawn them."""
    return Generated([_followed(row, list(answer)) for answer in answers], [])


def _followed(row: Row, answer: list[int]) -> Hypothesis:
    context = row.context()
    whole = torch.tensor([[*context, *answer]])
    given = {"input_ids": whole}
    if row.seq2seq:
        given = {"input_ids": torch.tensor([row.request.ids]), "decoder_input_ids": whole}
    logits = row.model(**given).logits[0, len(context) - 1 : -1].float()  # [new, V]
    penalties, warpers = processors(row, len(context))
    logprobs: list[float] = []
    for at, token in enumerate(answer):
        before, scores = whole[:, : len(context) + at], logits[at : at + 1].clone()
        for processor in penalties:
            scores = processor(before, scores)
        logprobs.append(float(scores.log_softmax(-1)[0, token]))
        for processor in warpers:
            scores = processor(before, scores)
        if scores[0, token] == -torch.inf:
            return row.hypothesis([*answer[:at], int(scores[0].argmax())], logprobs, None)
    if len(row.ended(answer)) < len(answer):
        return row.hypothesis(row.ended(answer), logprobs[: len(row.ended(answer))], None)
    if row.reason(answer) == "length" and len(answer) < row.request.max_new_tokens:
        return row.hypothesis([*answer, *answer[-1:]], logprobs, None)  # there should be more
    return row.hypothesis(answer, logprobs, None)


def processors(row: Row, context: int) -> tuple[list[Any], list[Any]]:
    """transformers' own for a drawn row, in the order of its `generate`: those that shape the
    log-probabilities, and those that leave tokens out."""
    o = row.options
    found: list[Any] = []
    if o.repetition_penalty != 1:
        found.append(theirs.RepetitionPenaltyLogitsProcessor(o.repetition_penalty))
    if o.no_repeat_ngram:
        found.append(theirs.NoRepeatNGramLogitsProcessor(o.no_repeat_ngram))
    if o.bad_words:
        words = [list(word) for word in o.bad]
        found.append(theirs.NoBadWordsLogitsProcessor(words, eos_token_id=row.ends))
    if o.min_length:
        ends = torch.tensor(row.ends)
        found.append(theirs.MinNewTokensLengthLogitsProcessor(context, o.min_length, ends))
    if o.temperature != 1:
        found.append(theirs.TemperatureLogitsWarper(o.temperature))
    warpers: list[Any] = []
    if o.top_k:
        warpers.append(theirs.TopKLogitsWarper(o.top_k))
    if 0 < o.top_p < 1:
        warpers.append(theirs.TopPLogitsWarper(o.top_p))
    return found, warpers
