"""How another format lays a model's tensors out: its names, its cut over tensor ranks, its order of
axes, as arithmetic that serves reading and writing alike.

`fastertransformer` and `megatron` list their `Form`s; the pieces they get here are what `load`
reads by, and what `write` fills their files by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ftjob.checkpoint.shard import Region, Shape
from ftjob.checkpoint.stored import Assembled, Piece, StoredTensor
from ftjob.errors import CheckpointError

# How q, k and v (3) share the rows of a rank's heads: 3 blocks of heads, heads of 3 blocks of
# rows, or rows of 3.
Fused = Literal["parts", "heads", "elements"]


@dataclass(frozen=True)
class Form:
    """How a format stores one tensor of the model, or three in one.

    `sources` are transformers' names, `stored` is the format's, both with {layer} where there is
    one; {rank} in `stored` is a file or tensor a rank. `split` is the axis of the model's tensor
    that the ranks share, `turned` says that the two axes change places, and `fused` how q, k and
    v lie along the split axis. One source that is fused holds the three behind each other.
    """

    sources: tuple[str, ...]
    stored: str
    split: int | None = None
    turned: bool = False
    fused: Fused | None = None


@dataclass(frozen=True)
class Box:
    """A box of a source and where it lies in the stored tensor, as in `Piece`."""

    source: int
    at: Region
    axes: tuple[int | None, ...]
    start: tuple[int, ...]


@dataclass(frozen=True)
class Laid:
    """A rank's stored tensor: its shape with the split axis as up to three, its boxes."""

    shape: Shape
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Placed:
    """A form at a layer: exact names, and the shape of each source."""

    form: Form
    sources: tuple[str, ...]
    stored: str
    shape: Shape

    def name(self, rank: int) -> str:
        """The stored name of a rank's part."""
        return self.stored.replace("{rank}", str(rank))

    @property
    def ranked(self) -> bool:
        """Whether each rank has a part of its own."""
        return "{rank}" in self.stored


def placed_forms(forms: Sequence[Form], shapes: Mapping[str, Shape]) -> Iterator[Placed]:
    """Each form at each layer whose sources are in `shapes`."""
    for form in forms:
        layer = 0
        while True:
            sources = tuple(name.replace("{layer}", str(layer)) for name in form.sources)
            if not all(name in shapes for name in sources):
                break
            stored = form.stored.replace("{layer}", str(layer))
            yield Placed(form, sources, stored, shapes[sources[0]])
            if sources == form.sources:
                break
            layer += 1


def lay(
    form: Form, shape: Shape, rank: int, ways: int, heads: int, length: int | None = None
) -> Laid:
    """The stored tensor of one of `ways` ranks, for sources of `shape`.

    `length` is the split axis's stored length over all ranks where that is padded; the padding
    lies in no box.

    Raises:
        CheckpointError: where the ranks cannot share the axis evenly.
    """
    split = form.split
    if split is None:
        natural = range(len(shape))
        along = tuple(reversed(natural)) if form.turned else tuple(natural)
        whole = Box(0, tuple(slice(0, n) for n in shape), along, (0,) * len(shape))
        return Laid(tuple(shape[a] for a in along), (whole,))
    single = form.fused is not None and len(form.sources) == 1
    size = (length or shape[split]) // (3 if single else 1)
    if size % ways or (form.fused == "heads" and heads % ways):
        raise CheckpointError(
            f"{form.stored}: {size} columns of {heads} heads cannot be cut into {ways} parts"
        )
    local, own = size // ways, heads // ways
    group: Shape = {
        None: (local,),
        "parts": (3, local),
        "elements": (local, 3),
        "heads": (own, 3, local // own if own else 0),
    }[form.fused]
    order = (1, 0) if form.turned and len(shape) == 2 else tuple(range(len(shape)))
    boxes = []
    for part in range(3 if form.fused else 1):
        source, before = (0, part * size) if single else (part, 0)
        for first, count, axes, start in _runs(form.fused, split, local, own, part):
            begin = before + rank * local + first
            end = min(begin + count, shape[split])
            if begin >= end:
                continue
            at = tuple(
                slice(begin, end) if a == split else slice(0, n) for a, n in enumerate(shape)
            )
            boxes.append(
                Box(
                    source,
                    at,
                    tuple(x for a in order for x in (axes if a == split else (a,))),
                    tuple(x for a in order for x in (start if a == split else (0,))),
                )
            )
    stored = tuple(n for a in order for n in (group if a == split else (shape[a],)))
    return Laid(stored, tuple(boxes))


def _runs(
    fused: Fused | None, split: int, local: int, heads: int, part: int
) -> Iterator[tuple[int, int, tuple[int | None, ...], tuple[int, ...]]]:
    """The runs of one part's elements on a rank: first, count, and axes and start of the stored
    axes that stand for the split one."""
    if fused is None:
        yield 0, local, (split,), (0,)
    elif fused == "parts":
        yield 0, local, (None, split), (part, 0)
    elif fused == "elements":
        yield 0, local, (split, None), (0, part)
    else:
        each = local // heads
        for head in range(heads):
            yield head * each, each, (None, None, split), (head, part, 0)


class Assembly:
    """Collects the pieces of a model's tensors, and gives them whole."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = shapes
        self._pieces: dict[str, list[Piece]] = {}

    def add(self, placed: Placed, laid: Laid, stored: StoredTensor) -> None:
        """Take the boxes of a stored tensor, which has the shape it is laid out in."""
        for box in laid.boxes:
            name = placed.sources[box.source]
            self._pieces.setdefault(name, []).append(Piece(stored, box.at, box.axes, box.start))

    def tensors(self) -> dict[str, Assembled]:
        """Every tensor of the model.

        Raises:
            ValueError: where pieces do not cover one (a bug of ours).
        """
        found: dict[str, Assembled] = {}
        for name, shape in self.shapes.items():
            pieces = tuple(self._pieces.get(name, ()))
            covered = sum(math.prod(s.stop - s.start for s in p.at) for p in pieces)
            if covered != math.prod(shape):
                raise ValueError(f"{name}: pieces cover {covered} elements of {list(shape)}")
            found[name] = Assembled(name, shape, pieces)
        return found
