"""The memory that the GPUs of a tensor group share where one process has all of them, and what is
done through it: sums, with the norm behind them, and gatherings of a few rows.

Threads of a process see each other's GPU memory by its addresses alone. Each device puts up its
`Post` before it loads; `kernels/one_shot` has the protocol. `nccl` asks `takes` for every tensor
and does the larger ones itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ftjob.comm import Pulse
from ftjob.comm.threads import Meeting
from ftjob.errors import DeadlinePassed
from ftjob.kernels.one_shot import Mailbox, gather_rows, sum_and_norm, sum_rows

# A sum is of so many rows and bytes at most; beyond that NCCL's is faster.
MOST_ROWS, MOST_BYTES = 256, 1 << 20
# Gatherings go in blocks of so many words, so many at most.
BLOCK, BLOCKS = 1024, 64
# Looks at a peer's words in a second, at least.
LOOKS = 2_000_000


@dataclass(frozen=True)
class Post:
    """What one device puts up: mail int64 [2, ways, rows, words], and a word of the host, int32
    [1], that is set where a peer's words stay away."""

    mail: torch.Tensor
    alarm: torch.Tensor

    @staticmethod
    def of(ways: int, rows: int, words: int, device: torch.device) -> Post:
        """An empty one."""
        mail = torch.zeros((2, ways, rows, words), dtype=torch.int64, device=device)
        pinned = device.type == "cuda"
        return Post(mail, torch.zeros(1, dtype=torch.int32, pin_memory=pinned))


def mailbox(posts: Sequence[Post], rank: int, device: torch.device, tries: int) -> Mailbox:
    """One rank's mailbox, made of what every rank has put up."""
    _, ways, rows, words = posts[rank].mail.shape
    kept = (*(post.mail for post in posts), posts[rank].alarm)
    addresses = [memory.data_ptr() for memory in kept]
    return Mailbox(
        *(rank, ways, rows, words),
        slots=torch.tensor(addresses, dtype=torch.int64, device=device),
        epochs=torch.zeros(rows, dtype=torch.int32, device=device),
        failed=torch.zeros(1, dtype=torch.int32, device=device),
        tries=tries,
        kept=kept,
    )


class Neighbours:
    """What the threads of a group show each other."""

    def __init__(self, size: int) -> None:
        self.meeting = Meeting(size)
        self.devices: dict[int, torch.device] = {}
        self.posts: dict[int, tuple[Post, Post]] = {}


class OneShot:
    """One device's sums and gatherings with its neighbours."""

    def __init__(self, sums: Mailbox, gatherings: Mailbox, alarms: Sequence[torch.Tensor]) -> None:
        self._sums, self._gatherings, self._alarms = sums, gatherings, alarms

    def takes(self, x: torch.Tensor) -> bool:
        """Whether x [N, H] is summed here."""
        size = x.element_size()
        return (
            x.dim() == 2
            and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
            and len(x) <= self._sums.rows
            and x.shape[1] * size % 4 == 0
            and x.shape[1] * size // 4 <= self._sums.words
            and x.numel() * size <= MOST_BYTES
            and x.is_contiguous()
        )

    def gathers(self, x: torch.Tensor) -> bool:
        """Whether x is gathered here."""
        box, size = self._gatherings, x.numel() * x.element_size()
        return size % 4 == 0 and size // 4 <= box.rows * box.words and x.is_contiguous()

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the group of x [N, H], which it `takes`; x stays as it is."""
        return sum_rows(self._sums, x)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Everybody's x, which it `gathers`: [size, *x.shape]."""
        return gather_rows(self._gatherings, x)

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
        given = (residual, product, product_bias, weight, bias, eps)
        return sum_and_norm(self._sums, *given, centred=centred)

    def check(self) -> None:
        """To be called while the host waits for the device.

        Raises:
            DeadlinePassed: where a peer's words have stayed away.
        """
        if any(alarm.item() for alarm in self._alarms):
            raise DeadlinePassed(
                "run.deadline_s: another GPU of the tensor group did not come to a sum in time."
            )


def join(
    neighbours: Neighbours,
    rank: int,
    device: torch.device,
    row_bytes: int,
    limit_s: float,
    pulse: Pulse,
) -> OneShot | None:
    """This device's place among its neighbours, once all have come; None where two of them cannot
    see each other's memory. A row that is summed has at most `row_bytes`."""
    ways = neighbours.meeting.size
    words = -(-row_bytes // 4)
    rows = max(1, min(MOST_ROWS, MOST_BYTES // max(1, row_bytes)))
    own = (Post.of(ways, rows, words, device), Post.of(ways, BLOCKS, BLOCK, device))
    torch.cuda.synchronize(device)
    neighbours.devices[rank], neighbours.posts[rank] = device, own
    neighbours.meeting.wait(pulse)
    # every pair, so that all of them find the same
    pairs = list(itertools.permutations(neighbours.devices.values(), 2))
    if not all(torch.cuda.can_device_access_peer(*pair) for pair in pairs):
        return None
    for other in neighbours.devices.values():
        torch.ones(1, device=device).to(other)  # torch opens the way with the first copy
    torch.cuda.synchronize(device)
    neighbours.meeting.wait(pulse)
    order = [neighbours.posts[r] for r in range(ways)]
    sums, gatherings = (
        mailbox([post[i] for post in order], rank, device, int(limit_s * LOOKS)) for i in range(2)
    )
    return OneShot(sums, gatherings, [post.alarm for post in own])
