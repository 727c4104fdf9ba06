"""How devices talk: the `Comm` of a group, the `Way` between stages, and signs of life.

The model and the scorer are given a `Comm` and never ask who they are. A group of one answers
each call with its own tensor, so one device runs the same code as many.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import torch

Reduction = Literal["sum", "max"]
# The shape and dtype of a tensor.
Form = tuple[tuple[int, ...], torch.dtype]


class Comm(Protocol):
    """A group of devices that hold parts of the same tensors. All of them make the same calls in
    the same order, each from its own thread; shapes and dtypes agree unless said otherwise.

    Results are shared by the devices of a process: they are read, never written into."""

    @property
    def rank(self) -> int:
        """This device's place in the group."""

    @property
    def size(self) -> int:
        """How many devices the group has."""

    @property
    def near(self) -> Near | None:
        """How its GPUs add and norm a few rows in one step, where one process has all of them."""

    def all_reduce(self, x: torch.Tensor, op: Reduction = "sum") -> torch.Tensor:
        """The element-wise sum or maximum over the group. `x` must not change meanwhile, and may
        become the result."""

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """Every device's tensor, stacked in group order: [size, *x.shape]."""


class Near(Protocol):
    """A group's sums through memory that its GPUs share (`peer`)."""

    def takes(self, x: torch.Tensor) -> bool:
        """Whether x [N, H] is summed that way."""

    def add_norm(
        self,
        residual: torch.Tensor,
        product: torch.Tensor,
        product_bias: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
        *,
        centred: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`kernels/add_norm` of the sum of `product` [N, H] over the group."""


class Way(Protocol):
    """Activations on their way to another stage, in order. One thread puts, one takes."""

    def put(self, sequence: int, x: torch.Tensor, pulse: Pulse) -> None:
        """Hand over the activations of chunk `sequence`, once there is room."""

    def take(self, sequence: int, pulse: Pulse, form: Form) -> torch.Tensor:
        """The activations of chunk `sequence`, which must be the next to come, of that form: not
        every way tells it."""


class Solo:
    """The group of one device."""

    rank = 0
    size = 1
    near = None

    def all_reduce(self, x: torch.Tensor, op: Reduction = "sum") -> torch.Tensor:
        """`x` itself."""
        return x

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """`x` with an axis of one before it."""
        return x.unsqueeze(0)


class Halted(Exception):
    """The rank gives up: whoever waits for another device leaves. The cause is told elsewhere."""


class Pulse:
    """A device's signs of life, written by its threads and read by the rank's main thread.

    A device that waits for another one is alive, however long it takes: what it waits for is the
    one to be suspected.
    """

    def __init__(self, halt: threading.Event) -> None:
        self._halt = halt
        self._last = time.monotonic()
        self._waiting: float | None = None
        self._looks: list[Callable[[], None]] = []

    def watch(self, look: Callable[[], None]) -> None:
        """Call `look` with every check from now on; it may raise."""
        self._looks.append(look)

    def __call__(self) -> None:
        """A sign of life.

        Raises:
            Halted: where the rank has given up.
        """
        self._last = time.monotonic()
        self.check()

    def check(self) -> None:
        """No sign of life, for a wait that may have no end.

        Raises:
            Halted: where the rank has given up.
        """
        if self._halt.is_set():
            raise Halted
        for look in self._looks:
            look()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, the device waits for another one."""
        self._waiting = time.monotonic()
        try:
            yield
        finally:
            self._last, self._waiting = time.monotonic(), None

    def rest(self) -> None:
        """The device gets work after a time without: its silence was ours."""
        self._last = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds without a sign of life; none while it waits for another device."""
        return 0.0 if self._waiting is not None else time.monotonic() - self._last

    @property
    def waiting_s(self) -> float:
        """Seconds it has been waiting for another device; 0 while it computes."""
        since = self._waiting
        return 0.0 if since is None else time.monotonic() - since
