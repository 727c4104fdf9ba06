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
Place = Literal["layer", "encoder", "first", "last", "every"]


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
    """One parameter and the tensors of a checkpoint that fill it.

    Names hold `{layer}` where `place` is "layer" (of the decoder) or "encoder"; "every" stage
    holds what all its layers share. `shape` is that of each of the `sources`: each is cut by
    itself, and a rank's parts lie behind each other along the parameter's output axis, its first.
    `transpose` turns the last two axes on the way into the parameter. `mean` and `std` shape
    random weights, `std` as one number for all sources or one each. `tied_to` names a parameter
    that holds the same values: where a device has it, this one is not read again. `quantize` marks
    what model.weights=int8 stores as int8.
    """

    parameter: str
    sources: tuple[str, ...]
    shape: Shape
    place: Place
    cut: Cut = Whole()
    transpose: bool = False
    quantize: bool = False
    tied_to: str | None = None
    mean: float = 0.0
    std: float | tuple[float, ...] = 0.02

    def part_shape(self, ways: int) -> Shape:
        """The shape of one source's part in the parameter on one of `ways` tensor ranks."""
        local = self.cut.local_shape(self.shape, ways)
        return (*local[:-2], local[-1], local[-2]) if self.transpose else local

    def parameter_shape(self, ways: int) -> Shape:
        """The shape of the parameter on one of `ways` tensor ranks."""
        first, *rest = self.part_shape(ways)
        return (len(self.sources) * first, *rest)

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

    def std_of(self, number: int) -> float:
        """The standard deviation of random weights of the source of that number."""
        return self.std[number] if isinstance(self.std, tuple) else self.std


@dataclass(frozen=True)
class Placed:
    """A rule at a layer: exact names, no holes left."""

    rule: TensorRule
    parameter: str
    sources: tuple[str, ...]


def place(
    rules: tuple[TensorRule, ...],
    layers: tuple[int, int],
    encoder: tuple[int, int],
    *,
    first: bool,
    last: bool,
) -> list[Placed]:
    """What a stage holds that has the decoder's layers layers[0] <= i < layers[1], and those of
    the encoder likewise. In reading order: embedding and head, the largest, while nothing else is
    held.

    A tied parameter is left out where the stage holds the parameter it is tied to.
    """
    held: list[Placed] = []
    spans = {"layer": range(*layers), "encoder": range(*encoder)}
    at = {"first": first, "last": last, "every": True}
    present = {r.parameter for r in rules if at.get(r.place)}
    for rule in rules:
        if rule.place in spans:
            held += [
                Placed(
                    rule,
                    rule.parameter.format(layer=i),
                    tuple(name.format(layer=i) for name in rule.sources),
                )
                for i in spans[rule.place]
            ]
        elif at[rule.place] and rule.tied_to not in present:
            held.append(Placed(rule, rule.parameter, rule.sources))
    return sorted(held, key=lambda placed: placed.rule.place in spans)


def place_all(rules: tuple[TensorRule, ...], layers: int, encoder: int) -> list[Placed]:
    """What a single stage holds: every tensor of the model once."""
    return place(rules, (0, layers), (0, encoder), first=True, last=True)
