"""The axes along which supported models differ, as plain numbers and words.

A family makes an `Arch` out of a checkpoint's config.json or of the shape in conf/model; the plan
counts bytes with it and `decoder` builds modules from it. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["gelu_tanh", "gelu", "relu"]


@dataclass(frozen=True)
class Arch:
    """A decoder-only transformer: pre-norm, learned positions, causal attention.

    `vocab` is the true vocabulary; padding for the tensor split is the plan's business.
    """

    family: str
    layers: int
    heads: int
    hidden: int
    ffn: int
    vocab: int
    positions: int
    norm_eps: float
    activation: Activation
    tied_head: bool

    @property
    def head_size(self) -> int:
        """Columns of one attention head."""
        return self.hidden // self.heads
