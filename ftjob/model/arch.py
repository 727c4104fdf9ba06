"""The axes along which supported models differ, as plain numbers and words.

A family makes an `Arch` out of a checkpoint's config.json or of the shape in conf/model; the plan
counts bytes with it and `decoder` and `seq2seq` build modules from it. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["gelu_tanh", "gelu", "relu"]


@dataclass(frozen=True)
class Relative:
    """Relative positions: one learned bias a head and bucket of distances, shared by all layers of
    a stack (Raffel et al. 2020, T5, section 2.1)."""

    buckets: int
    max_distance: int


@dataclass(frozen=True)
class Arch:
    """A pre-norm transformer: a causal decoder, behind an encoder where `encoder_layers` > 0.

    `vocab` is the true vocabulary; padding for the tensor split is the plan's business. `layers`
    are the decoder's. Positions are learned (`positions` of them) or `relative`, without a limit:
    then `positions` is None. A `gated` MLP is activation(x W0) * (x W1). A `scaled_head` takes the
    last hidden state times hidden ** -0.5.
    """

    family: str
    layers: int
    heads: int
    head_size: int
    hidden: int
    ffn: int
    vocab: int
    positions: int | None
    norm_eps: float
    activation: Activation
    tied_head: bool
    encoder_layers: int = 0
    norm: Literal["layer", "rms"] = "layer"
    relative: Relative | None = None
    gated: bool = False
    scaled_head: bool = False

    @property
    def seq2seq(self) -> bool:
        """Whether an encoder reads a source first."""
        return self.encoder_layers > 0

    @property
    def width(self) -> int:
        """Columns of all heads: of q, of k, of v."""
        return self.heads * self.head_size

    @property
    def biases(self) -> bool:
        """Whether linear layers have biases: in the families here, where norms have."""
        return self.norm == "layer"

    @property
    def attention_scale(self) -> float:
        """What scores are multiplied by. T5 trains without: its initialisation makes up for it."""
        return 1.0 if self.relative is not None else self.head_size**-0.5


@dataclass(frozen=True)
class Specials:
    """The token ids that begin and end a sequence. `start` is the decoder's first input of an
    encoder-decoder model; `ends` finish a row, none where the checkpoint states none."""

    start: int | None
    ends: tuple[int, ...]
