"""What a device holds beside weights and cache, in bytes: one batch on its way through, what
chooses tokens, attention scores, and what a GPU's libraries keep.

`plan` adds it up, `bench/measure` sets it beside what was measured. Standard library only.
"""

from __future__ import annotations

from ftjob.config.groups import JobConfig
from ftjob.model.arch import Arch
from ftjob.model.fill import IN_PLACE

# What cuBLAS keeps for the streams of a device: some 95 MB were seen on an H200 with torch 2.11.
LIBRARY_BYTES = 95_000_000
# Logits of scored positions are made a slice at a time, of so many bytes if they were f32.
LOGIT_BYTES = 1 << 27


def workspace_bytes(
    config: JobConfig,
    arch: Arch,
    dtype_bytes: int,
    device: str,
    tokens: int,
    lanes: int,
    scored: int | None = None,
) -> int:
    """What a batch of so many tokens takes on its way through, with logits of those that are
    `scored`, or of one position in sixteen; where rows are continued also what chooses the next
    tokens of so many lanes. A GPU reads prompts without logits, and scores by those that a product
    gives in the model's dtype, slice by slice.
    """
    tensor, gpu = config.parallel.tensor, device == "cuda"
    generates, columns = config.dataset.generates, -(-arch.vocab // config.parallel.tensor)
    scored = tokens // 16 + 1 if scored is None else scored
    if not gpu:
        made = tokens * _cpu_columns(arch, tensor, tokens) * dtype_bytes + 4 * scored * columns
    else:
        made, widest = _gpu_bytes(config, arch, dtype_bytes, tokens)
        logits = dtype_bytes * columns * min(scored, max(1, LOGIT_BYTES // (4 * columns)))
        # they come last, where the widest tensor of the layers was
        made += 0 if generates or logits <= widest else logits
    if generates:
        made += _choosing_bytes(arch, tensor, lanes, device)
    return made + (LIBRARY_BYTES if gpu else 0)


def _cpu_columns(arch: Arch, tensor: int, tokens: int) -> int:
    """Elements of a token: residual, normed input, q/k/v, attention output and the MLP's inner
    columns at their widest moment (a gate's are twice as many, and meet). Behind an encoder also
    its output, and the biases of relative positions masked row by row, for rows of up to 512
    tokens."""
    inner = max(3 * arch.width, (4 if arch.gated else 2) * arch.ffn) // tensor
    columns = 3 * arch.hidden + inner
    if arch.seq2seq:
        columns += arch.hidden + arch.heads // tensor * min(512, tokens)
    return columns


def _gpu_bytes(config: JobConfig, arch: Arch, dtype_bytes: int, tokens: int) -> tuple[int, int]:
    """Bytes of the same on a GPU, where sums wait for the next norm, and of the widest tensor. In
    the MLP the layer's stream and product, both halves' norms, the stream between them and the last
    product are there, and the inner columns. Where products are added in place there are the
    stream, a norm, what attention gives and then the next norm, the inner columns, and the room of
    q/k/v, which is too narrow for these and so stays as it is in torch's allocator; but a shorter
    pass that adds none in place must fit too. A later stage has what came besides, there and where
    captured passes look for it, in each micro-batch."""
    tensor, stages = config.parallel.tensor, config.parallel.pipeline
    # T5's stream in f16 is f32, and so are the inner columns that its last product takes
    wide = 2 if config.model.dtype == "f16" and arch.relative is not None else 1
    inner = _inner_copies(config, arch, dtype_bytes, wide) * arch.ffn // tensor
    apart = (6 * wide + 2) * arch.hidden + inner
    if tensor > 1:
        held = tokens * apart
    else:
        held = min(tokens, IN_PLACE - 1) * apart
        if tokens >= IN_PLACE:
            held = max(held, tokens * ((wide + 2) * arch.hidden + 3 * arch.width + inner))
    if stages > 1:
        held += (1 + stages) * tokens * wide * arch.hidden
    widest = tokens * max(3 * arch.width // tensor, arch.ffn // tensor)
    return held * dtype_bytes, widest * dtype_bytes


def _inner_copies(config: JobConfig, arch: Arch, dtype_bytes: int, wide: int) -> int:
    """How often a GPU has the MLP's inner columns at once, in the model's dtype: once where cuBLAS
    activates them as it makes them (`model/layers.Linear`), else also as they were before; of a
    gate twice, with what is activated and their product."""
    if arch.gated:
        return 4 * wide
    fused = dtype_bytes == 2 and config.model.weights == "float"
    fused = fused and arch.activation in ("gelu_tanh", "relu")
    return 1 if fused and wide == 1 else wide + 1


def _choosing_bytes(arch: Arch, tensor: int, lanes: int, device: str) -> int:
    """What a decode step takes to choose tokens: f32 logits and their softmax, and on a CPU the
    copy of the head that its fast products read."""
    rows = -(-arch.vocab // tensor)
    return 8 * lanes * rows + (4 * rows * arch.hidden if device == "cpu" else 0)


def score_bytes(arch: Arch, tensor: int, beams: int, dtype_bytes: int, device: str) -> int:
    """What attention takes in a decode step for each column of a slot, of which every head and lane
    has a number: f32 scores and their softmax, a rounded copy where the values are narrower, and
    where positions are relative a mask with their biases. A GPU's kernel keeps none of it."""
    if device == "cuda":
        return 0
    each = 8 + (dtype_bytes if dtype_bytes < 4 else 0) + (4 if arch.relative is not None else 0)
    return arch.heads // tensor * beams * each
