"""The group `decode`: the options that rows may have of their own, and those of the run alone.

`groups` takes it into the `JobConfig`; the searches are made by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ftjob.config.keys import between
from ftjob.config.options import RowOptions, option

# Most new tokens of a row: for so many the searches keep some numbers of every lane.
MOST_NEW_TOKENS = 65536


@dataclass(frozen=True)
class DecodeConfig(RowOptions):
    """How rows are continued, where the task generates. What `RowOptions` declares holds for rows
    that have no such option of their own."""

    max_new_tokens: int = option(
        128, "most new tokens of a row, end token included", rule=between(1, MOST_NEW_TOKENS)
    )
    beams: int = option(
        1, "beam width; 1 takes or draws a token a step", rule=between(1, 64), per_row=False
    )
    convention: Literal["hf", "ft"] = option(
        "hf",
        "whose rules hold where the two differ: transformers' or FasterTransformer's",
        per_row=False,
    )
    early_stopping: bool | Literal["never"] = option(
        False,
        "stop a row's beams when enough hypotheses are finished (true), when the best open beam is "
        "unlikely to beat them (false), or when it cannot (never)",
        ft="always true behind an encoder; without one finished beams stay and compete",
        per_row=False,
    )
    diversity_sign: Literal["ft", "paper"] = option(
        "ft",
        "beam_search_diversity_rate x rank is added (ft), or taken off as the paper has it "
        "(arXiv 1611.08562)",
        hf="refused with a rate",
        per_row=False,
    )

    @property
    def lanes(self) -> int:
        """Sequences that are decoded for a row: its beams or its drawn answers."""
        return max(self.beams, self.num_return_sequences)
