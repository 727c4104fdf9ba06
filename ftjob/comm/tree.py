"""The one order in which partial results of a tensor group are added, whatever processes hold them.

A binary tree over the group's logical ranks 0..n-1. A process adds up the whole subtrees that its
ranks form; those sums travel, and everybody finishes the tree from them. So four threads of one
process and four processes of one thread give the same bits. `threads` and `mpi` use it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ftjob.comm import Reduction

# Logical ranks first <= i < last that form a whole subtree.
Span = tuple[int, int]


def halves(span: Span) -> tuple[Span, Span]:
    """The two subtrees of a node: the left one takes the largest power of two short of all."""
    first, last = span
    middle = first + (1 << ((last - first - 1).bit_length() - 1))
    return (first, middle), (middle, last)


def whole_spans(held: Span, span: Span) -> list[Span]:
    """The largest subtrees of `span` that lie within `held`, in order."""
    if held[0] <= span[0] and span[1] <= held[1]:
        return [span]
    if span[1] <= held[0] or held[1] <= span[0] or span[1] - span[0] == 1:
        return []
    left, right = halves(span)
    return [*whole_spans(held, left), *whole_spans(held, right)]


def reduce_span(span: Span, parts: Mapping[Span, torch.Tensor], op: Reduction) -> torch.Tensor:
    """The sum or maximum over `span`, from the subtrees that `parts` holds. Tensors of one shape
    and dtype; gives a new tensor, or the part itself where one covers the span.

    Raises:
        KeyError: where a rank of the span is in no part.
    """
    if span in parts:
        return parts[span]
    if span[1] - span[0] == 1:
        raise KeyError(span)
    left, right = (reduce_span(half, parts, op) for half in halves(span))
    return left + right if op == "sum" else torch.maximum(left, right)
