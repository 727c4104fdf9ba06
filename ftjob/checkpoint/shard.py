"""How a checkpoint's tensors are cut: which slices of which tensor one device holds.

A family lists its tensors as `TensorRule`s; the plan counts bytes with them, `load` reads exactly
the slices they name, `random` fills exactly the elements they name. Standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Shape = tuple[int, ...]
Region = tuple[slice, ...]


@dataclass(frozen=True)
class Whole:
    """Every tensor rank holds the whole tensor."""

    def local_shape(self, shape: Shape, ways: int) -> Shape:
        """The shape one of `ways` ranks holds, in the checkpoint's orientation."""
        return shape

    def regions(self, shape: Shape, rank: int, ways: int) -> list[Region]:
        """The slices to read, to be joined along `axis` in this order."""
        return [tuple(slice(0, n) for n in shape)]

    @property
    def axis(self) -> int:
        """The axis along which the regions are joined."""
        return 0


@dataclass(frozen=True)
class Split:
    """`axis` is cut into equal parts, a part a rank.

    `fused` tensors lie behind each other along the axis (q, k and v: 3) and are cut each.
    `padded` allows an axis that does not divide: the last ranks hold fewer true elements, the
    rest is zero.
    """

    axis: int
    fused: int = 1
    padded: bool = False

    def local_shape(self, shape: Shape, ways: int) -> Shape:
        """The shape one of `ways` ranks holds, in the checkpoint's orientation."""
        size = math.ceil(shape[self.axis] / ways)
        return tuple(size if a == self.axis else n for a, n in enumerate(shape))

    def regions(self, shape: Shape, rank: int, ways: int) -> list[Region]:
        """The slices to read, to be joined along `axis` in this order."""
        whole = [slice(0, n) for n in shape]
        if ways == 1:  # fused parts are neighbours: one read
            return [tuple(whole)]
        part = shape[self.axis] // self.fused
        size = math.ceil(part / ways)
        regions: list[Region] = []
        for f in range(self.fused):
            start, stop = rank * size, min((rank + 1) * size, part)
            cut = slice(f * part + min(start, part), f * part + max(stop, min(start, part)))
            regions.append((*whole[: self.axis], cut, *whole[self.axis + 1 :]))
        return regions


Cut = Whole | Split


@dataclass(frozen=True)
class TensorRule:
    """One tensor of a checkpoint and the parameter it fills.

    Names hold `{layer}` where `place` is "layer". `shape` is the checkpoint's; `transpose` turns
    its last two axes on the way into the parameter. `mean` and `std` shape random weights.
    `tied_to` names a parameter that holds the same values: where a device has it, this one is
    not read again. `quantize` marks what model.weights=int8 stores as int8.
    """

    parameter: str
    source: str
    shape: Shape
    place: Literal["layer", "first", "last"]
    cut: Cut = Whole()
    transpose: bool = False
    quantize: bool = False
    tied_to: str | None = None
    mean: float = 0.0
    std: float = 0.02

    def parameter_shape(self, ways: int) -> Shape:
        """The shape of the parameter on one of `ways` tensor ranks."""
        local = self.cut.local_shape(self.shape, ways)
        return (*local[:-2], local[-1], local[-2]) if self.transpose else local

    @property
    def cuts_input(self) -> bool:
        """Whether the tensor ranks hold parts of the same output columns (row parallel)."""
        return isinstance(self.cut, Split) and self.cut.axis == (0 if self.transpose else 1)

    def parameter_bytes(self, ways: int, dtype_bytes: int, int8: bool) -> int:
        """Bytes of the parameter on one tensor rank, int8's f32 scales included."""
        shape = self.parameter_shape(ways)
        if int8 and self.quantize:
            return math.prod(shape) + 4 * shape[0]
        return math.prod(shape) * dtype_bytes


@dataclass(frozen=True)
class Placed:
    """A rule at a layer: exact names, no holes left."""

    rule: TensorRule
    parameter: str
    source: str


def place(
    rules: tuple[TensorRule, ...], first_layer: int, last_layer: int, *, first: bool, last: bool
) -> list[Placed]:
    """What a stage with layers `first_layer`..`last_layer`-1 holds, in reading order: embedding
    and head, the largest, while nothing else is held.

    A tied parameter is left out where the stage holds the parameter it is tied to.
    """
    held: list[Placed] = []
    at = {"first": first, "last": last}
    present = {r.parameter for r in rules if r.place != "layer" and at[r.place]}
    for rule in rules:
        if rule.place == "layer":
            held += [
                Placed(rule, rule.parameter.format(layer=i), rule.source.format(layer=i))
                for i in range(first_layer, last_layer)
            ]
        elif at[rule.place] and rule.tied_to not in present:
            held.append(Placed(rule, rule.parameter, rule.source))
    return sorted(held, key=lambda placed: placed.rule.place == "layer")
