"""Compiles every kernel for a GPU that is not there: `python compile_all.py CAPABILITY`, of 80 for
Ampere or 90 for Hopper. A line a launch: the kernel, and the bytes that its programs share.

Triton compiles for any architecture on any machine; only launching takes a GPU. So the kernels are
asked for as a device would ask, with tensors of the host, of a driver that launches nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from ftjob import kernels
from ftjob.comm import Solo
from ftjob.config.groups import DecodeConfig
from ftjob.decode.beam import BeamSearch
from ftjob.decode.search import SearchRow
from ftjob.kernels import add_norm, early, embed, few_rows, greedy, highest, one_shot, token_stats
from ftjob.kernels import packed_attention as packed
from ftjob.kernels import put as puts
from ftjob.kernels import step_attention as step
from ftjob.kernels.few_rows_configs import BANDS, MOST_ROWS, arrivals
from ftjob.model.packing import Blocks

CPU = torch.device("cpu")
# Bytes that a program may share: CUDA C++ Programming Guide, compute capabilities.
SHARED = {80: 163 * 1024, 90: 227 * 1024}
HEADS, SIZE = 12, 64
WIDTH = HEADS * SIZE


class Driver:
    """As much of Triton's driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)
        properties = {"max_shared_mem": SHARED[capability]}
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: properties,
            load_binary=lambda name, binary, shared, device: (0, 0, 0, 0, 1024),
        )

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., object]:
        """What launches a kernel: here it only says so."""
        told = f"{metadata.name} {metadata.shared}\n"
        return lambda *launch: sys.stdout.write(told)

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The only one."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return self._target


def small_kernels(dtype: torch.dtype) -> None:
    """Norms, embeddings, keys and values that are put away, scores of words."""
    x, weight = torch.zeros(3, WIDTH, dtype=dtype), torch.zeros(WIDTH, dtype=dtype)
    add_norm.add_norm(x, x, weight, weight, weight, 1e-5, centred=True)
    add_norm.add_norm(x, None, None, weight, None, 1e-5, centred=False)
    add_norm.add_norm(x, None, weight.float(), weight, weight, 1e-5, centred=True)
    ids, table = torch.zeros(3, dtype=torch.int64), torch.zeros(50, WIDTH, dtype=dtype)
    embed.embed(ids, table, 0, ids, table, dtype)
    embed.embed(ids, table, 7, None, None, dtype)
    pool = torch.zeros(2, HEADS, 99, SIZE, dtype=dtype)
    puts.put(pool, ids, torch.zeros(3, 2 * WIDTH, dtype=dtype))
    token_stats.row_stats(torch.zeros(3, 5000, dtype=dtype), ids, 4999)


def choices() -> None:
    """The highest logits, and what is made of them: greedy, and of beams by each rule."""
    for k, columns in ((2, 50257), (9, 32128), (highest.MOST, 100)):
        highest.highest(torch.zeros(4, columns), k)
    state = torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, 1, dtype=torch.bool)
    kept = torch.zeros(4, 9, 1, dtype=torch.int64), torch.zeros(4, 9, 1, 3)
    found = torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4)
    greedy.take(found, kept, state, state[0], torch.zeros(4, 2, dtype=torch.int64))
    kernels.used = lambda device: True
    for beams, rule in product((2, 4, 16), ("hf", "ft")):
        decode = DecodeConfig(beams=beams, convention=rule, early_stopping="never")
        search = BeamSearch(decode, (1,), 2, 32128, CPU)
        search.enter(0, [SearchRow(9)])
        with torch.inference_mode():
            taken = search._taken(1, torch.zeros(beams, 32128), Solo())
        assert taken is not None


def attention(dtype: torch.dtype) -> None:
    """Packed rows, and a step's lanes: prompts, sources, beams."""
    blocks = Blocks(torch.zeros(2, 5, dtype=torch.int32), 40)
    far = torch.zeros(HEADS, 257)
    for causal, bias in ((True, None), (False, far)):
        q, kv = torch.zeros(40, WIDTH, dtype=dtype), torch.zeros(40, 2 * WIDTH, dtype=dtype)
        packed.packed_attention(q, kv, blocks, HEADS, causal=causal, scale=0.1, bias=bias)
    for rows, lanes in ((1, 1), (64, 1), (64, 4)):
        pool = torch.zeros(2, HEADS, 99, SIZE, dtype=dtype)
        table = torch.zeros(rows, step.FIELDS, dtype=torch.int64)
        qkv = torch.zeros(rows * lanes, 3 * WIDTH, dtype=dtype)
        lineage = torch.zeros(rows, lanes, 32, dtype=torch.int32) if lanes > 1 else None
        asked = qkv[:, :WIDTH], pool, table, rows, step.Scratch.of(lanes, SIZE, CPU)
        step.step_attention(*asked, scale=0.1)
        for bias in (None, far):
            new = qkv[:, WIDTH:]
            step.step_attention(*asked, scale=0.1, new=new, lineage=lineage, bias=bias)


def products(dtype: torch.dtype) -> None:
    """Of few rows, as a step of GPT-345M or T5-base has them, with float weights and int8."""
    for (outputs, inputs), kept in product(((4096, 1024), (768, 3072)), (dtype, torch.int8)):
        for rows in BANDS if dtype != torch.float32 else (1, MOST_ROWS):
            few_rows.few_rows(
                torch.zeros(rows, inputs, dtype=dtype),
                torch.zeros(outputs, inputs, dtype=kept),
                arrivals(CPU),
                scale=None if kept == dtype else torch.zeros(outputs),
                bias=torch.zeros(outputs, dtype=dtype),
                activation="gelu_tanh" if outputs > inputs else None,
            )


def sums(dtype: torch.dtype) -> None:
    """One-shot sums of two and of eight."""
    x, weight = torch.zeros(3, 1024, dtype=dtype), torch.zeros(1024, dtype=dtype)
    for ways in (2, 8):
        slots, epochs = torch.zeros(ways + 1, dtype=torch.int64), torch.zeros(4, dtype=torch.int32)
        mail = one_shot.Mailbox(0, ways, 4, 1024, slots, epochs, epochs[:1].clone(), 9, ())
        one_shot.sum_rows(mail, x)
        one_shot.sum_and_norm(mail, x, x, weight, weight, weight, 1e-5, centred=True)
        one_shot.gather_rows(mail, x)


def main(capability: int) -> int:
    """Compile all."""
    triton.runtime.driver.set_active(Driver(capability))
    for found in pkgutil.iter_modules(kernels.__path__, "ftjob.kernels."):
        module: Any = importlib.import_module(found.name)
        if hasattr(module, "starts_early"):
            module.starts_early = lambda device: capability >= 10 * early.HOPPER
    choices()
    for dtype in (torch.bfloat16, torch.float32):
        for compiled in (small_kernels, attention, products, sums):
            compiled(dtype)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
