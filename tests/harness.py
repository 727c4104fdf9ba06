"""How the tests start ftjob: real processes, in a folder of the test's own; ranks by mpirun.

Besides the runner it makes what a job eats: a tiny GPT-2 that repeats its last token, so that the
right answers are known without any other engine, and a data set of rows that are and are not such.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import ftjob
from eval.launch import mpirun

DEMO = Path(ftjob.__file__).parent / "demo"
CLI = (sys.executable, "-m", "ftjob")
LAYERS, HEADS, HIDDEN, POSITIONS, VOCAB = 5, 4, 64, 128, 8193  # cut unevenly by 2 and 4
ROWS, EVERY_RIGHT = 240, 3  # row 0, 3, 6, ... end in the same word twice
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Ended:
    """A process that ended: its exit code and what it printed."""

    code: int
    out: str
    err: str
    seconds: float

    def expect(self, code: int, *words: str) -> Ended:
        """Assert the exit code, and that every word is in the message on stderr."""
        assert self.code == code, f"exit {self.code}, not {code}\n{self.out}\n{self.err}"
        for word in words:
            assert word in self.err, f"{word!r} is not in:\n{self.err}"
        return self


class Place:
    """A folder to run in. `env` changes the environment; None takes a variable out."""

    def __init__(self, cwd: Path, command: Sequence[str] = CLI) -> None:
        self.cwd, self.command = cwd, tuple(command)
        cwd.mkdir(parents=True, exist_ok=True)

    def start(
        self, *arguments: str, env: Mapping[str, str | None] | None = None
    ) -> subprocess.Popen[str]:
        """A process that runs on; `ended` waits for it."""
        variables = {**os.environ, **(env or {})}
        return subprocess.Popen(
            [*self.command, *arguments],
            cwd=self.cwd,
            env={k: v for k, v in variables.items() if v is not None},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, env: Mapping[str, str | None] | None = None) -> Ended:
        """Run to the end."""
        return ended(self.start(*arguments, env=env))

    def driver(self, name: str, code: str) -> Place:
        """The same folder, with ftjob started by a script that changes it first."""
        script = self.cwd / f"ftjob_{name}.py"
        tail = "from ftjob.__main__ import cli\n\nif __name__ == '__main__':\n    cli()\n"
        script.write_text(f"{code}\n{tail}", encoding="utf-8")
        return Place(self.cwd, (sys.executable, str(script)))

    def ranks(self, count: int, *, one_gpu: bool = False) -> Place:
        """The same, started as ranks by mpirun; with `one_gpu` each sees but the GPU of its
        number."""
        return Place(self.cwd, (*mpirun(count, one_gpu=one_gpu), *self.command))


def at_once(place: Place, jobs: Sequence[Sequence[str]]) -> list[Ended]:
    """Run command lines that do not depend on each other, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda arguments: place(*arguments), jobs))


def ended(process: subprocess.Popen[str], timeout: float = 60) -> Ended:
    """Wait for a process; one that does not end is killed, and the test fails."""
    start = time.monotonic()
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"did not end within {timeout} s\n{out}\n{err}") from None
    finally:  # also where pytest's own time limit strikes
        process.kill()
    return Ended(process.returncode, out, err, time.monotonic() - start)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until the condition holds; the process must not end before."""
    limit = time.monotonic() + 30
    while not condition():
        if process.poll() is not None or time.monotonic() > limit:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"waited in vain, exit {process.returncode}\n{out}\n{err}")
        time.sleep(0.005)


def load(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[dict[str, Any]]:
    """A JSONL file; every line must be whole."""
    text = path.read_text(encoding="utf-8")
    assert not text or text.endswith("\n"), f"{path}: torn last line"
    return [json.loads(line) for line in text.splitlines()]


def journal(run: Path, attempt: int) -> list[dict[str, Any]]:
    """The records of one attempt, without the header line."""
    return lines(run / "journal" / f"rank0000.attempt{attempt}.jsonl")[1:]


def status(run: Path, attempt: int) -> dict[str, Any]:
    """The status rank 0 left in one attempt."""
    found: dict[str, Any] = load(run / "status" / f"rank0000.attempt{attempt}.json")
    return found


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def gpt2_tensors(seed: int = 1) -> Tensors:
    """A GPT-2 whose blocks hardly change the residual: the likeliest next token is the last one."""
    made = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float = 0.02) -> torch.Tensor:
        return torch.randn(*shape, generator=made) * std

    h, f = HIDDEN, 4 * HIDDEN
    tensors = {
        "wte.weight": normal(VOCAB, h, std=0.25),
        "wpe.weight": normal(POSITIONS, h),
        "ln_f.weight": torch.ones(h),
        "ln_f.bias": normal(h),
    }
    for i in range(LAYERS):
        tensors |= {
            f"h.{i}.ln_1.weight": torch.ones(h) + normal(h),
            f"h.{i}.ln_1.bias": normal(h),
            f"h.{i}.attn.c_attn.weight": normal(h, 3 * h),
            f"h.{i}.attn.c_attn.bias": normal(3 * h),
            f"h.{i}.attn.c_proj.weight": normal(h, h),
            f"h.{i}.attn.c_proj.bias": normal(h),
            f"h.{i}.ln_2.weight": torch.ones(h) + normal(h),
            f"h.{i}.ln_2.bias": normal(h),
            f"h.{i}.mlp.c_fc.weight": normal(h, f),
            f"h.{i}.mlp.c_fc.bias": normal(f),
            f"h.{i}.mlp.c_proj.weight": normal(f, h),
            f"h.{i}.mlp.c_proj.bias": normal(h),
        }
    return tensors


def write_gpt2(folder: Path, tensors: Tensors | None = None, **config: Any) -> Path:
    """A Hugging Face GPT-2 folder with the demo model's tokenizer."""
    from safetensors.torch import save_file  # tests/gpu does without

    folder.mkdir(parents=True, exist_ok=True)
    save_file(gpt2_tensors() if tensors is None else tensors, folder / "model.safetensors")
    stated = {
        "model_type": "gpt2",
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_embd": HIDDEN,
        "n_positions": POSITIONS,
        "vocab_size": VOCAB,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(stated), encoding="utf-8")
    shutil.copy(DEMO / "demo_gpt" / "tokenizer.json", folder)
    return folder


# Writes the lines of each chunk it begins into `begun`, then takes a tenth of a second.
SLOW = """
import time
from pathlib import Path
import ftjob.device

real = ftjob.device.score_chunk

def score_chunk(stage, chunk, *rest):
    if chunk.requests[0].key:
        with Path("begun").open("a") as file:
            print(*(r.row.line for r in chunk.requests), file=file, flush=True)
        time.sleep(0.1)
    return real(stage, chunk, *rest)

ftjob.device.score_chunk = score_chunk
"""

WORDS = ["time", "house", "water", "light", "night", "woman", "child", "voice", "street", "morning"]


def text_of(index: int) -> str:
    """Row `index`: a passage of 8 to 40 words; every third one ends in the same word twice."""
    length = 8 + (index * 7) % 33
    words = [WORDS[(index * index + 3 * k + k // 4) % len(WORDS)] for k in range(length)]
    last = WORDS[(index * 5 + 1) % len(WORDS)]
    words[-1] = last if index % EVERY_RIGHT == 0 else WORDS[(WORDS.index(last) + 1) % len(WORDS)]
    return f"{index} the {' '.join(words)} {last}"


def write_rows(path: Path, count: int = ROWS) -> Path:
    """A JSONL data set; its right answers are those with index % EVERY_RIGHT == 0."""
    text = "".join(json.dumps({"text": text_of(i)}) + "\n" for i in range(count))
    path.write_text(text, encoding="utf-8")
    return path
