"""What a size must move and compute at the least: the bytes and operations that rates and limits
are made of. Pure arithmetic over the model's shape.

Counted are the matrices of the layers and of the head, the cache, and attention; embeddings that
are looked up, norms, biases, activations and int8's scales are not (together under 2 % of a decode
step of GPT-345M at batch 1). A multiplication and its addition are two operations. `measure` sets
the work beside the measured times, `predict` makes seconds of the sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ftjob.config.groups import ModelConfig
from ftjob.model.arch import Arch
from ftjob.plan import DTYPE_BYTES


@dataclass(frozen=True)
class Work:
    """Bytes to read or write once, and floating-point operations."""

    bytes: float
    flop: float

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flop + other.flop)

    def seconds(self, bytes_s: float, flop_s: float) -> float:
        """The least time at these rates: of the bytes or of the operations, whichever is longer."""
        return max(self.bytes / bytes_s, self.flop / flop_s)


@dataclass(frozen=True)
class Sizes:
    """A model's matrices by element: of a decoder layer what each new token meets (`layer`), the
    keys and values of a source's tokens (`cross`), of an encoder layer (`encoder`), and the head.

    `bytes_of` is the size of an activation, cache or head element, `stored` that of an element of a
    layer's weights: 1 for int8.
    """

    arch: Arch
    bytes_of: int
    stored: int

    @classmethod
    def of(cls, model: ModelConfig, arch: Arch) -> Sizes:
        """Those of a model as it is configured."""
        each = DTYPE_BYTES[model.dtype]
        return cls(arch, each, 1 if model.weights == "int8" else each)

    @property
    def layer(self) -> int:
        """q, k, v and output (4 h w), behind an encoder q and output again (2 h w), and the MLP."""
        a = self.arch
        attention = (6 if a.seq2seq else 4) * a.hidden * a.width
        return attention + self._mlp

    @property
    def cross(self) -> int:
        """k and v of a source: 2 h w; none without an encoder."""
        return 2 * self.arch.hidden * self.arch.width if self.arch.seq2seq else 0

    @property
    def encoder(self) -> int:
        """q, k, v and output, and the MLP."""
        return 4 * self.arch.hidden * self.arch.width + self._mlp

    @property
    def head(self) -> int:
        """Vocabulary times hidden size."""
        return self.arch.vocab * self.arch.hidden

    @property
    def _mlp(self) -> int:
        return (3 if self.arch.gated else 2) * self.arch.hidden * self.arch.ffn

    @property
    def token(self) -> int:
        """Bytes of a token's keys and values in the cache of all decoder layers."""
        return 2 * self.arch.layers * self.arch.width * self.bytes_of


def pairs_flop(width: int, layers: int, pairs: float) -> float:
    """Attention over so many pairs of a query and a key: a product for the score and one for the
    value, 4 x width operations a pair and layer."""
    return 4.0 * width * layers * pairs


def prefill(sizes: Sizes, rows: int, length: int) -> Work:
    """From `rows` prompts or sources of `length` tokens to the first new token of each: every
    matrix read once, the cache written; 2 x elements x tokens operations, the head's at one
    position a row, and attention over the causal or, in an encoder, all pairs."""
    a = sizes.arch
    tokens = rows * length
    if not a.seq2seq:
        weights = sizes.stored * a.layers * sizes.layer + sizes.bytes_of * sizes.head
        flop = 2.0 * a.layers * sizes.layer * tokens + 2.0 * sizes.head * rows
        flop += pairs_flop(a.width, a.layers, rows * length * (length + 1) / 2)
        return Work(weights + tokens * sizes.token, flop)
    weights = sizes.stored * (a.encoder_layers * sizes.encoder + a.layers * sizes.cross)
    flop = 2.0 * (a.encoder_layers * sizes.encoder + a.layers * sizes.cross) * tokens
    flop += pairs_flop(a.width, a.encoder_layers, rows * length * length)
    written = Work(weights + tokens * sizes.token, flop)
    return written + _steps(sizes, rows, 1, length, 0, 1)


def decode(sizes: Sizes, rows: int, lanes: int, length: int, new: int) -> Work:
    """The steps for `new` tokens of each of `lanes` lanes a row, after the first token: new - 1 of
    them. A step reads the layers' weights and the head once, each row's prompt or source once from
    the cache and each lane's own tokens; it computes 2 x elements x lanes, and attention."""
    return _steps(sizes, rows, lanes, length, 1, new)


def _steps(sizes: Sizes, rows: int, lanes: int, length: int, first: int, end: int) -> Work:
    """Steps first <= t < end; in step t a lane sees `length` shared keys and t of its own, in a
    decoder behind an encoder its start token besides."""
    a, count = sizes.arch, max(0, end - first)
    own = count * (first + end - 1) / 2 + (count if a.seq2seq else 0)
    weights = sizes.stored * a.layers * sizes.layer + sizes.bytes_of * sizes.head
    kept = rows * sizes.token * (count * length + lanes * own)
    flop = 2.0 * (a.layers * sizes.layer + sizes.head) * rows * lanes * count
    flop += pairs_flop(a.width, a.layers, rows * lanes * (count * length + own))
    return Work(count * weights + kept, flop)


def scoring(sizes: Sizes, rows: Iterable[tuple[int, int]]) -> Work:
    """Rows of (context, target) tokens scored in one pass, a row's last token no input: every
    matrix read once, the layers' products at every token, the head's at the targets."""
    a = sizes.arch
    work = Work(sizes.stored * a.layers * sizes.layer + sizes.bytes_of * sizes.head, 0.0)
    for context, target in rows:
        tokens = context + target - 1
        flop = 2.0 * a.layers * sizes.layer * tokens + 2.0 * sizes.head * target
        flop += pairs_flop(a.width, a.layers, tokens * (tokens + 1) / 2)
        work += Work(0.0, flop)
    return work
