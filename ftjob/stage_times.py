"""Seconds of one stage of a replica: of a decode step, of prompts read, of rows scored, each in
parts that say what it waits for.

A stage's time is the sum over its kernels: a matrix takes its weights' bytes or its operations,
whichever is longer (Williams, Waterman and Patterson 2009, Roofline), and a start; attention its
cache likewise; the rest its activations. `predict` makes a replica's times of it. Standard library
only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

from ftjob.bench.roofline import Sizes, pairs_flop
from ftjob.config.groups import JobConfig
from ftjob.model.arch import Arch
from ftjob.plan import Plan
from ftjob.rates import Rates, place_of

# Rows that are few: a product of so many at most reads its weight while the launch before it ends.
FEW = 4
# Small kernels of a step besides the layers': embedding, last norm, choosing, bookkeeping.
STEP_KERNELS = 20
# Bytes a logit takes behind its product: made f32, and read to choose by.
LOGIT_BYTES = 8


@dataclass(frozen=True)
class Parts:
    """Seconds by what they go to. `compute` is what operations take longer than the weights or
    the cache that they read; `bubble` the average device's wait for other stages."""

    weights: float = 0.0
    cache: float = 0.0
    activations: float = 0.0
    compute: float = 0.0
    messages: float = 0.0
    launches: float = 0.0
    host: float = 0.0
    bubble: float = 0.0

    def __add__(self, other: Parts) -> Parts:
        return Parts(*(a + b for a, b in zip(self.seconds, other.seconds, strict=True)))

    def times(self, factor: float) -> Parts:
        """Every part so many times."""
        return Parts(*(factor * part for part in self.seconds))

    @property
    def seconds(self) -> tuple[float, ...]:
        """The parts in order. A search adds up thousands, and `astuple` copies each value."""
        return (
            self.weights,
            self.cache,
            self.activations,
            self.compute,
            self.messages,
            self.launches,
            self.host,
            self.bubble,
        )

    @property
    def total(self) -> float:
        """All seconds."""
        return math.fsum(self.seconds)

    def largest(self) -> list[tuple[str, float]]:
        """Names and seconds of the parts that there are, longest first."""
        named = zip((f.name for f in fields(self)), self.seconds, strict=True)
        return sorted((part for part in named if part[1] > 0), key=lambda part: -part[1])


@dataclass(frozen=True)
class Seat:
    """A stage as its times need it: its layers, the ends it holds, and in how many ranks its tensor
    group and its way to the next stage lie, in the replica where these are most."""

    layers: int
    encoder: int
    first: bool
    last: bool
    group_ranks: int
    next_ranks: int


def seats_of(plan: Plan) -> list[Seat]:
    """The stages of a replica."""
    ranks: dict[tuple[int, int], set[int]] = {}
    for d in plan.devices:
        ranks.setdefault((d.data, d.pipeline), set()).add(d.rank)
    seats = []
    for d in plan.devices[: plan.tensor * plan.pipeline : plan.tensor]:
        here = [ranks[i, d.pipeline] for i in range(plan.data)]
        # what was chosen goes from the last stage back to the first
        there = [ranks[i, (d.pipeline + 1) % plan.pipeline] for i in range(plan.data)]
        crossed = 1 if all(a == b and len(a) == 1 for a, b in zip(here, there, strict=True)) else 2
        layers, encoder = d.last_layer - d.first_layer, d.last_encoder - d.first_encoder
        seats.append(Seat(layers, encoder, d.first, d.last, max(map(len, here)), crossed))
    return seats


def unknown_wire(plan: Plan, rates: Rates) -> str | None:
    """Which list of messages the plan needs and the rates have not; None where none is."""
    for seat in seats_of(plan):
        needed = (
            ("all_reduce", plan.tensor, seat.group_ranks, rates.reduce),
            ("send", plan.pipeline, seat.next_ranks, rates.send),
        )
        for name, devices, ranks, wires in needed:
            if devices > 1 and place_of(ranks) not in wires:
                where = place_of(ranks)
                keys = "network" if where == "nodes" else "link"
                return (
                    f"{rates.source} has no {name} with where={where}; doctor.out measures it, "
                    f"plan.{keys}_us and plan.{keys}_gb_s state it"
                )
    return None


class Stages:
    """The times of a plan's stages, a micro-batch each."""

    def __init__(self, config: JobConfig, arch: Arch, plan: Plan, rates: Rates) -> None:
        self._arch, self._ways, self._rates = arch, plan.tensor, rates
        self._sizes, self._alone = Sizes.of(config.model, arch), plan.pipeline == 1
        self._choice_s = rates.beams_s if config.decode.beams > 1 else 0.0
        self.seats = seats_of(plan)

    def each(self, make: Callable[[Seat], Parts]) -> list[Parts]:
        """What `make` says of every stage; equal ones are asked about once."""
        found = {seat: make(seat) for seat in set(self.seats)}
        return [found[seat] for seat in self.seats]

    def step(self, seat: Seat, rows: int, lanes: int, length: int, own: float) -> Parts:
        """A decode step of `rows` rows of so many lanes, each of which sees `length` tokens that
        its row's lanes share and `own` of its own. Captured."""
        a, sizes, layers, each = self._arch, self._sizes, seat.layers, self._sizes.bytes_of
        count, behind = rows * lanes, 3 if a.seq2seq else 2  # products added to the residual
        own += 1 if a.seq2seq else 0
        parts = self._matrices(layers * sizes.layer, 2 * behind * layers, count, sizes.stored)
        kept = sizes.token * layers / a.layers * rows * (length + lanes * own)
        parts += self._attention(layers, count * (length + own), kept)
        parts += self._stream(layers, behind, count) + self._sums(seat, behind * layers, count)
        # one for each attention, MLP or norm; a sum within a process has the norm in it
        norms = 0 if self._ways > 1 and seat.group_ranks == 1 else behind * layers
        kernels = behind * layers + norms
        if seat.last:
            parts += self._head(count) + Parts(launches=self._choice_s)
            if self._ways > 1:  # the highest logit of each part of the vocabulary, and its id
                parts += self._reduced(seat, 1, 8.0 * count)
        if seat.first or seat.last:
            kernels += STEP_KERNELS
        parts += self._launched(kernels)
        passed = 8.0 * count if seat.last else each * a.hidden * count
        return parts + self._handed(seat, passed)

    def read(self, seat: Seat, rows: int, length: int) -> Parts:
        """Prompts or sources of `length` tokens are read, and their keys and values kept."""
        entry = Parts(host=self._rates.entry_s + rows * self._rates.row_s)
        if not self._arch.seq2seq:
            return self._packed(seat, rows, length, 0) + entry
        a, sizes, tokens = self._arch, self._sizes, rows * length
        parts = self._matrices(
            seat.encoder * sizes.encoder, 4 * seat.encoder, tokens, sizes.stored
        ) + self._matrices(seat.layers * sizes.cross, seat.layers, tokens, sizes.stored)
        parts += self._attention(seat.encoder, tokens * length, 0.0)
        parts += self._kept(seat, tokens) + self._stream(seat.encoder, 2, tokens)
        parts += self._sums(seat, 2 * seat.encoder, tokens)
        parts += entry + self._launched(8 * seat.encoder + 2 * seat.layers)
        # to the next stage, and what the last one makes to all of them
        return parts + self._handed(seat, 2.0 * sizes.bytes_of * a.hidden * tokens)

    def score(self, seat: Seat, rows: int, context: int, target: int) -> Parts:
        """Rows of (context, target) tokens are scored, a row's last token no input."""
        return self._packed(seat, rows, context + target - 1, target)

    def _packed(self, seat: Seat, rows: int, length: int, wanted: int) -> Parts:
        """Rows packed through a decoder, as `model.decoder` does: the last layer makes q, k and v
        of every token, and the rest of the `wanted` ones of a row."""
        a, sizes, tokens = self._arch, self._sizes, rows * length
        whole = seat.layers - seat.last
        qkv = 3 * a.hidden * a.width
        parts = self._matrices(
            whole * sizes.layer + seat.last * qkv, 4 * whole + seat.last, tokens, sizes.stored
        )
        seen = whole * rows * length * (length + 1) / 2
        if seat.last and wanted:
            parts += self._matrices(sizes.layer - qkv, 3, rows * wanted, sizes.stored)
            parts += self._head(rows * wanted)
            seen += rows * wanted * length
        parts += self._attention(1, seen, 0.0) + self._kept(seat, tokens)
        parts += self._stream(whole, 2, tokens) + self._sums(seat, 2 * whole, tokens)
        parts += self._launched(8 * seat.layers)
        return parts + self._handed(seat, 0.0 if seat.last else sizes.bytes_of * a.hidden * tokens)

    def _matrices(self, elements: int, count: int, tokens: int, stored: int) -> Parts:
        """`count` matrices of so many elements in all, times `tokens` columns."""
        r = self._rates
        read = elements * stored / self._ways / (r.weights_share * r.copy_bytes_s)
        made = 2.0 * elements * tokens / self._ways / (r.product_share * r.product_flop_s)
        start = r.few_s if tokens <= FEW else r.matrix_s
        return Parts(weights=read, compute=max(0.0, made - read), launches=count * start)

    def _head(self, tokens: int) -> Parts:
        """Logits of so many positions, and what chooses by them."""
        logits = LOGIT_BYTES * tokens * self._arch.vocab / self._ways
        head = self._matrices(self._sizes.head, 1, tokens, self._sizes.bytes_of)
        return head + Parts(activations=logits / self._rates.copy_bytes_s)

    def _attention(self, layers: int, pairs: float, kept: float) -> Parts:
        """So many pairs of a query and a key in each layer, with `kept` bytes of cache to read."""
        r = self._rates
        read = kept / self._ways / (r.cache_share * r.copy_bytes_s)
        flop = pairs_flop(self._arch.width, layers, pairs) / self._ways
        made = flop / (r.attention_share * r.product_flop_s)
        return Parts(cache=read, compute=max(0.0, made - read))

    def _kept(self, seat: Seat, tokens: int) -> Parts:
        """Keys and values of `tokens` written to the cache."""
        written = self._sizes.token * seat.layers / self._arch.layers * tokens
        return Parts(cache=written / self._ways / self._rates.copy_bytes_s)

    def _stream(self, layers: int, norms: int, tokens: int) -> Parts:
        """The residual sum with its norm, which reads two rows of the hidden size and writes two,
        `norms` times a layer, and q, k, v and output of attention."""
        columns = 4 * norms * self._arch.hidden + 4 * (norms - 1) * self._arch.width / self._ways
        moved = layers * tokens * columns * self._sizes.bytes_of
        return Parts(activations=moved / self._rates.copy_bytes_s)

    def _sums(self, seat: Seat, count: int, tokens: int) -> Parts:
        """`count` sums of [tokens, hidden] over the tensor group, and the embedding's."""
        each = float(self._sizes.bytes_of * self._arch.hidden * tokens)
        return self._reduced(seat, count + seat.first, each)

    def _reduced(self, seat: Seat, count: int, each: float) -> Parts:
        seconds = self._rates.all_reduce(each, self._ways, seat.group_ranks) if count else 0.0
        return Parts(messages=count * seconds)

    def _handed(self, seat: Seat, count: float) -> Parts:
        """A message to the next stage, where there is one and something to tell."""
        if self._alone or not count:
            return Parts()
        return Parts(messages=self._rates.hand_over(count, seat.next_ranks))

    def _launched(self, kernels: int) -> Parts:
        """What the kernels take that are no matrix's: all are launched as one, captured."""
        return Parts(launches=kernels * self._rates.launch_s)
