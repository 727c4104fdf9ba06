"""`python -m eval.bench.load_worker RANK NODES OVERRIDE...`: the device threads of one node load.

Prints a line when imports and plan are done, loads when it reads one, prints its figures as JSON,
and ends when its input does. `load_memory` watches the process in between, from outside.
"""

from __future__ import annotations

import json
import math
import queue
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ftjob.batching import Chunk
from ftjob.checkpoint.shared import Key, SharedReads, key_of
from ftjob.checkpoint.stored import BITS
from ftjob.comm import Pulse, Solo
from ftjob.comm.groups import Wires
from ftjob.config.compose import compose
from ftjob.device import DeviceThread
from ftjob.job import Job, prepare
from ftjob.model.stage import Stage
from ftjob.news import Failed, Message, Ready
from ftjob.plan import DeviceSpec, Machine, stage_tensors
from ftjob.telemetry import Phases


class Member(Solo):
    """A place in a tensor group that never talks: float weights load without a word."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


class Loader(DeviceThread):
    """A device thread that does not warm up: a stage alone cannot score."""

    def _launch(self, stage: Stage, chunk: Chunk) -> None:
        pass


def main() -> int:
    """Load once, between two lines."""
    rank, nodes, overrides = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    config = compose(["cluster.device=cpu", *overrides])
    per_node = config.parallel.tensor * config.parallel.pipeline // nodes
    job = prepare(config, Machine((per_node,) * nodes, "cpu", 1 << 36, "assumed"))
    specs = job.plan.of_rank(rank)
    outbox: queue.Queue[Message] = queue.Queue()
    pulse = Pulse(threading.Event())
    wires = [Wires(Member(s.tensor, job.plan.tensor), None, None) for s in specs]
    shared = SharedReads(job.source.rules, specs, job.plan.tensor)
    threads = [
        Loader(job, s, w, pulse, outbox, Phases(), shared)
        for s, w in zip(specs, wires, strict=True)
    ]
    torch.ones(8, 8) @ torch.ones(8, 8)  # the libraries' own buffers are no weights
    print("ready", flush=True)
    sys.stdin.readline()
    before, start = characters_read(), time.monotonic()
    for thread in threads:
        thread.start()
    held = 0
    for _ in threads:
        message = outbox.get()
        if isinstance(message, Failed):
            raise SystemExit(str(message.cause))
        assert isinstance(message, Ready)
        held += message.weight_bytes
    figures = {
        "seconds": time.monotonic() - start,
        "bytes_read": characters_read() - before,
        "slice_bytes": slice_bytes(job, specs),
        "weight_bytes": sum(s.weight_bytes for s in specs),
        "held_bytes": held,
    }
    print(json.dumps(figures), flush=True)
    sys.stdin.read()
    return 0


def slice_bytes(job: Job, specs: Sequence[DeviceSpec]) -> int:
    """Bytes of the stored slices that a node's devices need, each once; none of random weights."""
    index = job.source.index
    if index is None:
        return 0
    found: dict[Key, int] = {}
    for spec in specs:
        for placed in stage_tensors(job.source.rules, spec):
            rule = placed.rule
            for region in rule.cut.regions(rule.shape, spec.tensor, job.plan.tensor):
                for name in placed.sources:
                    bits = BITS[index.tensors[name].dtype]
                    count = math.prod(r.stop - r.start for r in region)
                    found[key_of(name, region)] = count * bits // 8
    return sum(found.values())


def characters_read() -> int:
    """Bytes this process got from read calls of any kind, as the kernel counts them."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


if __name__ == "__main__":
    sys.exit(main())
