"""What the device itself can do, measured where and when a size is timed: a copy, a matrix product,
and what the card says of its clocks. `measure` sets the job's rates beside them.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

# Elements of a copy, and the side of a product. On a GPU the copy is 2 GiB of bf16, far beyond its
# caches; on a CPU both take tens of milliseconds.
COPY = MappingProxyType({"cuda": 1 << 30, "cpu": 1 << 25})
SIDE = MappingProxyType({"cuda": 8192, "cpu": 1024})
SMALLEST_SIDE, SMALLEST_COPY = 1024, 1 << 24
ROUNDS, WARM = 15, 3
BUSY_S = 1.0
# The allocator's pool for everything that is not captured.
SHARED_POOL = (0, 0)
ASKED = ("name", "driver_version", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


@dataclass(frozen=True)
class Ceilings:
    """Rates of one device: bytes/s of a copy, read and written bytes counted; operations/s of a
    matrix product in the job's dtype; each the fastest of its rounds. `card` is what nvidia-smi
    said under the product."""

    copy_bytes_s: float
    product_flop_s: float
    copy_bytes: int
    product_side: int
    card: dict[str, str] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@torch.inference_mode()
def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Copy x to y: 2 x bytes of x; multiply two square matrices of side n: 2 n^3 operations.
    Smaller ones where the memory is short."""
    count, side = COPY[device.type], SIDE[device.type]
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        count = min(count, max(SMALLEST_COPY, free // 8))
        side = side if free > 32 * side * side else SMALLEST_SIDE
    copied = 4 * count  # of two bytes, read and written
    copy_s = _copy_seconds(count, device)
    product_s, card = _product_seconds(side, device, dtype)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Ceilings(copied / copy_s, 2 * side**3 / product_s, copied, side, card)


def _copy_seconds(count: int, device: torch.device) -> float:
    x = torch.ones(count, dtype=torch.bfloat16, device=device)
    y = torch.empty_like(x)
    return fastest(lambda: y.copy_(x), device)


def _product_seconds(
    side: int, device: torch.device, dtype: torch.dtype
) -> tuple[float, dict[str, str] | None]:
    # random numbers: of equal ones a GPU's product is faster than any real one
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = fastest(lambda: a @ b, device)
    if device.type != "cuda":
        return seconds, None
    return seconds, _card_at_work(device, lambda: a @ b, seconds)


def fastest(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest call; on a GPU between two events of its stream."""
    found = []
    for _ in range(WARM + ROUNDS):
        if device.type == "cuda":
            begin, end = (
                torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                for _ in range(2)
            )
            begin.record()
            run()
            end.record()
            end.synchronize()
            found.append(float(begin.elapsed_time(end)) / 1e3)
        else:
            start = time.perf_counter()
            run()
            found.append(time.perf_counter() - start)
    return min(found[WARM:])


def _card_at_work(
    device: torch.device, run: Callable[[], object], seconds: float
) -> dict[str, str] | None:
    """What the card says while it works: idle clocks would say nothing."""
    for _ in range(int(BUSY_S / seconds) + 1):
        run()
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    found = ask_card(f"GPU-{uuid.removeprefix('GPU-')}")
    torch.cuda.synchronize(device)
    return found


def ask_card(uuid: str) -> dict[str, str] | None:
    """Name, driver, clocks in MHz, watts and degrees of a GPU; None where nvidia-smi is silent."""
    command = ["nvidia-smi", f"--id={uuid}", f"--query-gpu={','.join(ASKED)}"]
    try:
        done = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(ASKED, values, strict=True)) if len(values) == len(ASKED) else None


class PeakMemory:
    """The most memory taken since it was made: of the fullest GPU what tensors took there, with
    what captured passes keep besides, of a CPU the process's resident set (VmHWM of proc(5), which
    writing 5 to clear_refs resets). What torch's allocator has at hand for the next tensor is not
    counted: it gives that back where memory is short."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._gpus = [device for device in devices if device.type == "cuda"]
        for device in self._gpus:
            torch.cuda.reset_peak_memory_stats(device)
        if not self._gpus:
            # where that is not allowed, it is the most since the process began
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    @property
    def bytes(self) -> int:
        """The peak so far."""
        if self._gpus:
            segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
            return max(
                torch.cuda.max_memory_allocated(gpu) + graph_bytes(segments, gpu)
                for gpu in self._gpus
            )
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def graph_bytes(segments: Sequence[Mapping[str, Any]], gpu: torch.device) -> int:
    """Bytes of a GPU that captured work keeps and that no tensor has, from the allocator's segments
    (`torch.cuda.memory_snapshot`): those in pools that are nobody else's."""
    return sum(
        int(segment["total_size"]) - int(segment["allocated_size"])
        for segment in segments
        if segment["device"] == gpu.index and tuple(segment["segment_pool_id"]) != SHARED_POOL
    )
