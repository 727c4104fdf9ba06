"""The highest logits of each row over a vocabulary that is cut over a tensor group.

The searches choose tokens from them. Every device of the group gets the same numbers, so that all
of them take the same decisions without asking each other again.
"""

from __future__ import annotations

import math

import torch

from ftjob import kernels
from ftjob.comm import Comm

# Fewer columns than this are searched as they are.
BINNED_FROM = 2048
# Columns of a bin.
BIN = 64
# Rows looked at together.
BLOCK = 64
LOG2_E = math.log2(math.e)


def top_logprobs(
    logits: torch.Tensor, k: int, group: Comm
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `k` highest of logits [M, V/T] of any float dtype: f32 values [M, k] falling, ids [M, k]
    int64, equal values by rising id, and log(sum(exp(logits))) over the whole vocabulary [M], in
    f32, so that value - norm is a log-probability. Column c of rank r is id r * V/T + c; padding is
    -inf. k is at most V.
    """
    columns = logits.shape[1]
    held = min(k, columns)
    # a block's logits stay in a CPU's cache from one look to the next
    blocks = torch.split(logits, BLOCK) if logits.device.type == "cpu" else (logits,)
    parts = [_look(block, held) for block in blocks]
    values, ids, norm = parts[0]
    if len(parts) > 1:
        values, ids, norm = (torch.cat(part) for part in zip(*parts, strict=True))
    if group.size == 1:
        return values, ids, norm
    bits = (ids + group.rank * columns).to(torch.int32).view(torch.float32)
    found = torch.cat((values, bits, norm.unsqueeze(1)), dim=1)
    return _merged(group.all_gather(found), k)


def log_norm(logits: torch.Tensor, group: Comm) -> torch.Tensor:
    """log(sum(exp(logits))) over the whole vocabulary, [M], of f32 logits [M, V/T]."""
    norm = logits.logsumexp(dim=1)
    return norm if group.size == 1 else group.all_gather(norm).logsumexp(dim=0)


def whole_vocabulary(logits: torch.Tensor, group: Comm) -> torch.Tensor:
    """All columns of logits [M, V/T], [M, V] and padding at -inf: column c is id c."""
    if group.size == 1:
        return logits
    return group.all_gather(logits).transpose(0, 1).flatten(1)


def _look(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k highest values of each row, their columns, and the row's log(sum(exp(logits)))."""
    if kernels.used(logits.device):
        # imported here because a machine without a GPU may be without triton
        from ftjob.kernels.highest import MOST, highest

        if k <= MOST:
            return highest(logits, k)
    logits = logits.float()
    values, columns = _highest(logits, k)
    # a rank may hold nothing but padding
    norm = log_sum_exp(logits, values[:, :1]).masked_fill(values[:, 0] == -torch.inf, -torch.inf)
    return values, columns, norm


def _merged(every: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k highest values of each row, their ids and the norm of all columns, of what T ranks have
    found: [T, M, 2h + 1], values, the bits of ids, norm."""
    if kernels.used(every.device):
        from ftjob.kernels.highest import MOST, merge

        if k <= MOST:
            return merge(every, k)
    held = every.shape[2] // 2
    both = every[..., : 2 * held].transpose(0, 1)  # [M, T, 2h]
    values, order = (
        both[..., :held].flatten(1).sort(dim=1, descending=True, stable=True)
    )  # [M, T * h]; ids rise with the rank, so stable keeps equal values by rising id
    ids = both[..., held:].flatten(1).view(torch.int32).gather(1, order[:, :k]).long()
    return values[:, :k], ids, every[..., -1].logsumexp(dim=0)


def log_sum_exp(logits: torch.Tensor, highest: torch.Tensor) -> torch.Tensor:
    """log(sum(exp(logits))) of each row [M], from its highest value [M, 1].

    By powers of two, which a CPU computes faster than torch's exp (`eval/bench/cpu_parts`).
    """
    powers = torch.add(highest * -LOG2_E, logits, alpha=LOG2_E).exp2_()
    return highest.squeeze(1) + powers.sum(dim=1).log()


def _highest(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k highest values of each row and their columns, equal values by rising column."""
    if logits.device.type != "cpu":
        return _highest_by_key(logits, k)
    # topk leaves open which of equal values it takes, and in what order. One value more than asked
    # for shows whether that matters; on the CPU looking costs nothing.
    values, columns = some_highest(logits, min(k + 1, logits.shape[1]))
    tied = (values[:, 1:] == values[:, :-1]) & (values[:, 1:] > -torch.inf)
    values, columns = values[:, :k], columns[:, :k]
    if bool(tied.any()):
        rows = tied.any(dim=1).nonzero().squeeze(1)
        values[rows], columns[rows] = _highest_by_key(logits[rows], k)
    return values, columns


def some_highest(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """topk, of many columns by way of bins: the k highest values lie in the k bins of neighbours
    with the highest maxima. `eval/bench/cpu_parts` times it.
    """
    columns = logits.shape[1]
    bins = columns // BIN
    if columns < BINNED_FROM or k > bins // 4:
        return logits.topk(k)
    whole = bins * BIN
    cut = logits[:, :whole].reshape(len(logits), bins, BIN)  # [M, B, D]
    chosen = cut.amax(dim=2).topk(k).indices  # [M, k]
    found = cut.gather(1, chosen.unsqueeze(2).expand(-1, -1, BIN)).flatten(1)  # [M, k * D]
    if whole < columns:
        found = torch.cat((found, logits[:, whole:]), dim=1)
    values, at = found.topk(k)
    bin_of = at.div(BIN, rounding_mode="floor")
    held = chosen.gather(1, bin_of.clamp(max=k - 1)) * BIN + at % BIN
    return values, held.where(bin_of < k, at - k * BIN + whole)


def _highest_by_key(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same through whole-number keys, no two alike: the value's bits, put in order, before the
    column counted down."""
    last = logits.shape[1] - 1
    bits = (logits + 0.0).view(torch.int32)  # + 0.0 makes one zero of two
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    down = torch.arange(last, -1, -1, device=logits.device)
    keys = ((rising << 32) | down).topk(k).values
    columns = last - (keys & 0xFFFFFFFF)
    return logits.gather(1, columns), columns
