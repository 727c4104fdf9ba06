"""The decoding options that a row may have of its own: one table of name, default, range, meaning.

`groups.DecodeConfig` takes them as the run's keys, `tasks.options` reads a row's own by the same
rules, the README's table of options is rendered from them, and the searches obey them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ftjob.config.keys import Rule, at_least, between, key, keys_of
from ftjob.config.words import tokenised, word_ids

Convention: TypeAlias = Literal["hf", "ft"]
# as FasterTransformer's kernels have it
MOST_TOP_K = 1024

_UNIT = Rule("from 0 to 1", lambda v: 0.0 <= v <= 1.0)
_SHARE = Rule("above 0, at most 1", lambda v: 0.0 < v <= 1.0)
_FINITE = Rule("a finite number", math.isfinite)
_ABOVE_0 = Rule("above 0 and finite", lambda v: 0.0 < v < math.inf)
_NOT_BELOW_0 = Rule("at least 0 and finite", lambda v: 0.0 <= v < math.inf)
# what fits a signed word of 64 bits
_SEED = Rule("from 0 to 2**63 - 1", lambda v: 0 <= v < 1 << 63)
_WORDS = "a word is a text, an id or a list of ids; one text alone is FasterTransformer's CSV"


def option(
    default: Any,
    doc: str,
    *,
    rule: Rule | None = None,
    hf: str = "",
    ft: str = "",
    per_row: bool = True,
) -> Any:
    """Declare an option. `hf` and `ft` say what it means in each convention, where they differ."""
    return key(
        default, doc, rule=rule, shapes_answer=True, more={"hf": hf, "ft": ft, "per_row": per_row}
    )


@dataclass(frozen=True)
class RowOptions:
    """How one row is continued. Lengths count new tokens, ids are the vocabulary's."""

    top_k: int = option(
        0,
        "draw from the K likeliest tokens; 1 is greedy; 0 is no such limit, and greedy without "
        "top_p",
        rule=between(0, MOST_TOP_K),
    )
    top_p: float = option(
        0.0,
        "draw from the likeliest tokens with this share of the mass, among those of top_k; 1 is "
        "all; 0 is no such limit, and greedy without top_k",
        rule=_UNIT,
        hf="the token that reaches top_p keeps its whole mass",
        ft="the token that reaches top_p keeps only its mass below it",
    )
    temperature: float = option(
        1.0,
        "logits are divided by it; 0 is greedy",
        rule=_NOT_BELOW_0,
        hf="after the penalties, where a row is drawn",
        ft="before the penalties, in greedy and beam search too; 1e-6 is added to it",
    )
    repetition_penalty: float = option(
        1.0,
        "logits of tokens seen before are divided by it, below 0 multiplied; once a token",
        rule=_ABOVE_0,
        hf="prompt and new tokens, with an encoder the decoder's; under beams on log-probabilities",
        ft="the same tokens; on logits; excludes presence_penalty",
    )
    presence_penalty: float = option(
        0.0,
        "taken off the logits of tokens seen before, once a token",
        rule=_FINITE,
        hf="new tokens alone (OpenAI's; transformers has none)",
        ft="prompt and new tokens; excludes repetition_penalty",
    )
    frequency_penalty: float = option(
        0.0,
        "taken off the logits of new tokens, as often as they came",
        rule=_FINITE,
        hf="OpenAI's; transformers has none",
        ft="refused: FasterTransformer has none",
    )
    min_length: int = option(0, "no end token before so many new tokens", rule=at_least(0))
    no_repeat_ngram: int = option(
        0,
        "no N tokens in a row come twice, prompt included; 0 is off",
        rule=at_least(0),
        ft="the same; FasterTransformer has none",
    )
    bad_words: tuple[int | tuple[int, ...] | str, ...] | str | None = option(
        None,
        f"words that must not come; {_WORDS}",
        hf="an end id alone is no bad word",
        ft="id 0 is never banned",
    )
    stop_words: tuple[int | tuple[int, ...] | str, ...] | str | None = option(
        None, "words that end a row, and stay in its answer; they may begin in the prompt"
    )
    start_id: int | None = option(
        None,
        "the token before the first new one; null is the model's",
        rule=at_least(0),
        hf="of an encoder-decoder model, or in place of an empty prompt",
        ft="the same",
    )
    end_id: int | tuple[int, ...] | None = option(
        None, "id or ids that end a row; null is the model's"
    )
    top_p_decay: float = option(
        1.0, "top_p is multiplied by it after each token (rows without top_k)", rule=_SHARE
    )
    top_p_min: float = option(1e-6, "top_p does not decay below it", rule=_SHARE)
    top_p_reset: int | None = option(
        None, "the id after which top_p is what it was at first", rule=at_least(0)
    )
    seed: int = option(
        0,
        "draws depend on it, the row's content, which of equal rows it is, and the position",
        rule=_SEED,
    )
    length_penalty: float = option(
        1.0,
        "hypotheses rank by cum_logprob / length ** length_penalty (beams > 1)",
        rule=between(-10, 10),
        hf="length counts new tokens",
        ft="without an encoder, length counts the row's own prompt too, and every step ranks so",
    )
    beam_search_diversity_rate: float = option(
        0.0,
        "times a token's rank within its beam, added to its score (beams > 1)",
        rule=_FINITE,
        hf="refused: transformers has none",
        ft="by decode.diversity_sign",
    )
    n_best: int = option(1, "hypotheses to report, at most beams", rule=at_least(1))
    num_return_sequences: int = option(
        1, "drawn answers of a row; a row's own at most the run's", rule=at_least(1)
    )
    token_logprobs: bool = option(
        False,
        "also report each token's log-probability",
        ft="with top_k, among those K tokens",
    )
    prompt_logprob: bool = option(
        False, "also report the prompt's log-probability (models without an encoder)"
    )

    @property
    def drawn(self) -> bool:
        """Whether tokens are drawn; else the likeliest are taken."""
        return self.temperature > 0 and (self.top_k > 1 or (self.top_k == 0 and self.top_p > 0))

    @property
    def ends(self) -> tuple[int, ...] | None:
        """The row's own end ids."""
        return (self.end_id,) if isinstance(self.end_id, int) else self.end_id

    @property
    def bad(self) -> tuple[tuple[int, ...], ...]:
        """The bad words as ids, of options that went through `with_ids`."""
        return word_ids(self.bad_words)

    @property
    def stops(self) -> tuple[tuple[int, ...], ...]:
        """The stop words as ids, of options that went through `with_ids`."""
        return word_ids(self.stop_words)

    def with_ids(self, encode: Callable[[Sequence[str]], list[list[int]]]) -> RowOptions:
        """The same options, all words as ids: each text is tokenised as it is.

        Raises:
            ValueError: for a word without tokens.
        """
        found: dict[str, Any] = {}
        for name in ("bad_words", "stop_words"):
            if (words := getattr(self, name)) is not None:
                found[name] = tokenised(words, encode, name)
        return dataclasses.replace(self, **found) if found else self


# a row without options of its own
DEFAULTS = RowOptions()


def conflict(
    options: RowOptions,
    convention: Convention,
    beams: int,
    max_new_tokens: int,
    given: Container[str],
    prefix: str = "",
) -> str | None:
    """Why these options, each legal, do not go together; None where they do. `given` are the names
    that were asked for, of which some have no effect with others; `prefix` goes before names."""
    o, at = options, prefix
    if beams > 1 and o.drawn:
        return (
            f"{at}top_k={o.top_k} {at}top_p={o.top_p:g} draw tokens, and {at}beams={beams} ranks "
            "them. Use one of the two"
        )
    if beams > 1 and o.num_return_sequences > 1:
        return (
            f"{at}num_return_sequences={o.num_return_sequences} with {at}beams={beams}: it counts "
            f"drawn answers. Use {at}n_best"
        )
    if o.num_return_sequences > 1 and not o.drawn:
        return (
            f"{at}num_return_sequences={o.num_return_sequences} would give one answer as often. "
            f"Draw tokens, with {at}top_k above 1 or {at}top_p"
        )
    if o.n_best > beams:
        return (
            f"{at}n_best={o.n_best} is more than {at}beams={beams}: a search ends with as many "
            f"hypotheses as beams. Use {at}beams={o.n_best} or more"
        )
    if o.min_length > max_new_tokens:
        return f"{at}min_length={o.min_length} is more than {at}max_new_tokens={max_new_tokens}"
    if o.top_k > 0 and ("top_p_decay" in given or "top_p_reset" in given):
        return (
            f"{at}top_k={o.top_k}: {at}top_p_decay and {at}top_p_reset are for rows without top_k"
        )
    if o.beam_search_diversity_rate and beams == 1:
        return f"{at}beam_search_diversity_rate needs {at}beams above 1"
    if convention == "hf" and o.beam_search_diversity_rate:
        return (
            f"{at}beam_search_diversity_rate={o.beam_search_diversity_rate:g}: transformers has "
            f"none. Use {at}convention=ft"
        )
    if convention == "ft" and o.frequency_penalty:
        return (
            f"{at}frequency_penalty={o.frequency_penalty:g}: FasterTransformer has none. Use "
            f"{at}convention=hf"
        )
    if convention == "ft" and o.repetition_penalty != 1 and o.presence_penalty:
        return (
            f"{at}repetition_penalty={o.repetition_penalty:g} and {at}presence_penalty="
            f"{o.presence_penalty:g} exclude each other with {at}convention=ft"
        )
    idle = "temperature" in given and o.temperature not in (0.0, 1.0) and not (o.drawn or o.top_k)
    if convention == "hf" and idle:
        return (
            f"{at}temperature={o.temperature:g} does nothing to the likeliest token. Draw tokens, "
            f"with {at}top_k above 1 or {at}top_p (1 is the whole vocabulary)"
        )
    return None


def id_problem(options: RowOptions, vocab: int) -> str | None:
    """Which option holds an id that the vocabulary has not; None where none does. The options'
    words are ids already."""
    held = {
        "bad_words": [i for word in options.bad for i in word],
        "stop_words": [i for word in options.stops for i in word],
        "end_id": list(options.ends or ()),
        "start_id": [] if options.start_id is None else [options.start_id],
        "top_p_reset": [] if options.top_p_reset is None else [options.top_p_reset],
    }
    for name, ids in held.items():
        for i in ids:
            if not 0 <= i < vocab:
                return f"{name}: id {i} is not in the model's vocabulary, 0 to {vocab - 1}"
    return None


def render_options(group: type[Any]) -> str:
    """The README's table of options: default, range, scope, and the meaning in both conventions."""
    lines = [
        "| option | default | range | scope | meaning | `hf` | `ft` |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for k in keys_of(group):
        rule = k.rule.text if k.rule is not None else k.type_text.replace("|", "\\|")
        scope = "run, row" if k.more.get("per_row") else "run"
        sides = [k.more.get(side) or "=" for side in ("hf", "ft")]
        cells = [f"`{k.name}`", k.default_text, rule, scope, k.doc, *sides]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
