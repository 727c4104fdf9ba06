"""How the devices of a group talk: the `Comm` protocol, and the group of one.

The model and the scorer are given a `Comm` and never ask who they are. A group of one answers
each call with its own tensor, so one device runs the same code as many.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch

Reduction = Literal["sum", "max"]


class Comm(Protocol):
    """A group of devices that hold parts of the same tensors. All of them make the same calls in
    the same order, each from its own thread; shapes and dtypes agree unless said otherwise."""

    @property
    def rank(self) -> int:
        """This device's place in the group."""

    @property
    def size(self) -> int:
        """How many devices the group has."""

    def all_reduce(self, x: torch.Tensor, op: Reduction = "sum") -> torch.Tensor:
        """The element-wise sum or maximum over the group; may reuse `x`."""

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """Every device's tensor, stacked in group order: [size, *x.shape]."""


class Solo:
    """The group of one device."""

    rank = 0
    size = 1

    def all_reduce(self, x: torch.Tensor, op: Reduction = "sum") -> torch.Tensor:
        """`x` itself."""
        return x

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """`x` with an axis of one before it."""
        return x.unsqueeze(0)
