"""`python -m eval.mutations --each 500`: damage checkpoints of every format, and open them.

Each mutation must end in a clear refusal, or load exactly the bytes that are there; a traceback of
another kind, a hang or a value that no file holds is a failure. With a manifest every changed file
must be found. Writes reports/raw/mutations.json and its report.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from eval.random_copy import save_random
from eval.record import REPORTS, provenance, write_raw
from eval.render import render
from ftjob.checkpoint.convert import Conversion, Target, convert
from ftjob.checkpoint.load import FileSource
from ftjob.checkpoint.manifest import MANIFEST_NAME, check_manifest
from ftjob.checkpoint.shard import place_all
from ftjob.commands.convert import open_source
from ftjob.config import build
from ftjob.config.compose import compose
from ftjob.errors import JobError
from ftjob.job import ModelSource

NAME = "mutations"
TINY = {
    "gpt2": ("model=gpt2", "model.arch.positions=16"),
    "t5": ("model=t5", "model.arch.variant=v1_1", "model.arch.encoder_layers=2"),
}
SIZES = ("layers=2", "heads=4", "hidden=16", "ffn=24", "vocab=23")
HANG_S = 20
TEXT = [
    "A tiny random GPT-2 and a T5 in every format; each mutation changes bits, runs of bytes, "
    "lengths, names or settings of one or two files of a fresh copy, drawn from its seed. Refused: "
    "one message that names a file, exit 2 or 3. As it was: the change lies where nothing is read. "
    "Other numbers: no more numbers differ than bytes were changed. Other settings: the files "
    "describe another model, whole in itself. Found: changed files that the manifest of a "
    "converted folder gave away, before anything is loaded. The plain format holds addresses, so "
    "its files, and what a seed does to them, differ from run to run.",
]
Weights = dict[str, torch.Tensor]


class Hang(Exception):
    """A mutation took too long."""


def make_tiny(folder: Path, family: str) -> Path:
    """The tiny random model of a family as a Hugging Face folder."""
    folder.mkdir(parents=True)
    shape = [f"model.arch.{size}" for size in SIZES]
    save_random(folder, compose([*TINY[family], *shape, "model.checkpoint=random"]))
    return folder


def as_bin(source: Path, out: Path, zipped: bool) -> Path:
    """The same with pytorch_model.bin, in either of torch's formats."""
    out.mkdir()
    shutil.copy(source / "config.json", out)
    held = load_file(source / "model.safetensors")
    torch.save(held, out / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    return out


def as_plain(folder: Path) -> Path:
    """Megatron's files in torch's older format, which their manifest does not know."""
    for path in folder.rglob("*.pt"):
        root = torch.load(path, weights_only=False)
        torch.save(root, path, _use_new_zipfile_serialization=False)
    (folder / MANIFEST_NAME).unlink()
    return folder


def opened(folder: Path) -> ModelSource:
    """The checkpoint as `convert` opens it."""
    return open_source(build({"model": {"checkpoint": str(folder)}}))


def make_formats(work: Path) -> dict[str, Path]:
    """A folder of each format, by name."""
    gpt, t5 = make_tiny(work / "gpt", "gpt2"), make_tiny(work / "t5", "t5")

    def into(source: Path, to: Target, name: str, tensor: int = 1, pipeline: int = 1) -> Path:
        held = opened(source)
        assert held.index is not None
        facts = (held.index, held.arch, held.specials, held.rules)
        out = work / name
        convert(Conversion(*facts, to, out, tensor, pipeline, "auto"), lambda step, count: None)
        return out

    return {
        "safetensors": into(gpt, "hf", "safetensors"),
        "pytorch_model.bin, zip": as_bin(gpt, work / "zip", True),
        "pytorch_model.bin, plain": as_bin(gpt, work / "plain", False),
        "FasterTransformer GPT": into(gpt, "fastertransformer", "ft-gpt", 2),
        "FasterTransformer T5": into(t5, "fastertransformer", "ft-t5", 2),
        "Megatron-LM, zip": into(gpt, "megatron", "megatron", 2, 2),
        "Megatron-LM, plain": as_plain(into(gpt, "megatron", "megatron-plain", 2)),
    }


def load(folder: Path) -> tuple[Any, Weights]:
    """What the model is, and every number of it."""
    source = opened(folder)
    assert source.index is not None
    weights: Weights = {}
    with FileSource(source.index, torch.device("cpu")) as files:
        for placed in place_all(source.rules, source.arch.layers, source.arch.encoder_layers):
            for name in placed.sources:
                weights[name] = torch.empty(placed.rule.shape)
                whole = tuple(slice(0, n) for n in placed.rule.shape)
                files.read_tensor(name, whole, weights[name])
    return (source.arch, source.specials), weights


def mutate(folder: Path, chance: random.Random) -> str:
    """Damage one or two files; says how."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST_NAME)
    settings = [f for f in files if f.suffix in (".json", ".ini", ".txt")]
    one, other = chance.choice(files), chance.choice(files)
    data = bytearray(one.read_bytes())
    early = min(len(data), 4096)
    at = chance.randrange(chance.choice([early, len(data)]) or 1) if data else 0
    kind = chance.choice(
        [
            *("bits", "bits", "bits", "run", "cut", "grown", "inserted", "empty", "lost"),
            *("swapped", "copied", "renamed", "added", "number", "number", "line"),
        ]
    )
    if kind == "bits":
        for _ in range(chance.randint(1, 4)):
            data[min(at + chance.randrange(64), len(data) - 1)] ^= 1 << chance.randrange(8)
    elif kind == "run":
        length = min(chance.choice([4, 16, 256]), len(data) - at)
        data[at : at + length] = (
            bytes(length) if chance.random() < 0.5 else chance.randbytes(length)
        )
    elif kind == "inserted":
        data[at:at] = chance.randbytes(chance.randint(1, 9))
    elif kind in ("cut", "empty"):
        data = data[: at if kind == "cut" else 0]
    elif kind == "grown":
        data += chance.randbytes(chance.choice([1, 4, 4096]))
    elif kind == "number":
        one = chance.choice(settings)
        data = bytearray(one.read_bytes())
        digits = [i for i, b in enumerate(data) if chr(b).isdigit()] or [0]
        data[chance.choice(digits)] = ord(chance.choice("0123456789-e."))
    elif kind == "line":
        one = chance.choice(settings)
        lines = one.read_bytes().splitlines(keepends=True)
        number = chance.randrange(len(lines))
        lines[number : number + 1] = chance.choice([[], [lines[number]] * 2])
        data = bytearray(b"".join(lines))
    if kind == "lost":
        one.unlink()
    elif kind == "swapped":
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
    elif kind == "copied":
        shutil.copyfile(one, other) if one != other else None
    elif kind == "renamed":
        one.rename(one.with_name(chance.choice(["other.bin", "x", f"{one.name}.old"])))
    elif kind == "added":
        one.with_name(f"x.{one.name}").write_bytes(data)
    else:
        one.write_bytes(data)
    return kind


def changed_bytes(before: Path, after: Path) -> int:
    """Bytes by which the files of two folders differ, in content or length."""
    names = {f.relative_to(b) for b in (before, after) for f in b.rglob("*") if f.is_file()}
    total = 0
    for name in names:
        a, b = ((d / name).read_bytes() if (d / name).is_file() else b"" for d in (before, after))
        total += sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))
    return total


def judge(folder: Path, whole: Path, known: tuple[Any, Weights]) -> str:
    """What opening a damaged folder came to; a failure begins with FAILED."""
    try:
        with alarm():
            facts, weights = load(folder)
    except JobError as error:
        message = str(error)
        if error.code not in (2, 3) or not message.isprintable() or len(message) > 1500:
            return f"FAILED: a refusal with exit {error.code}: {message!r}"
        return "refused"
    except Hang:
        return f"FAILED: did not end within {HANG_S} s"
    except Exception as error:
        return f"FAILED: {type(error).__name__}: {error}"
    if facts != known[0] or weights.keys() != known[1].keys():
        return "other settings"
    wrong = sum(int((weights[n] != v).sum()) for n, v in known[1].items())
    if wrong > changed_bytes(whole, folder):
        return f"FAILED: {wrong} numbers differ, more than bytes were changed"
    return "other numbers" if wrong else "as it was"


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    """Raise `Hang` in what takes too long."""

    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def by_manifest(folder: Path, whole: Path) -> bool | None:
    """Whether the manifest gave the change away; None where no listed file changed."""
    files = [f for f in whole.rglob("*") if f.is_file()]
    place = next((f.parent for f in files if f.name == MANIFEST_NAME), None)
    if place is None:
        return None
    after = folder / place.relative_to(whole)
    same = all(
        (mine := after / f.relative_to(place)).is_file() and mine.read_bytes() == f.read_bytes()
        for f in files
        if f.is_relative_to(place)
    )
    if same:
        return None
    try:
        check_manifest(after)
    except JobError:
        return True
    return False


def campaign(work: Path, each: int, seed: int, told: Callable[[str], None]) -> dict[str, Any]:
    """Format -> outcomes, kinds of damage, failures and what the manifest found."""
    found: dict[str, Any] = {}
    for name, whole in make_formats(work).items():
        known, outcomes, kinds = load(whole), Counter[str](), Counter[str]()
        failures: list[str] = []
        changed = given_away = 0
        for number in range(each):
            chance = random.Random(f"{seed} {name} {number}")
            damaged = work / "damaged" / whole.name
            shutil.copytree(whole, damaged)
            kind = mutate(damaged, chance)
            outcome = judge(damaged, whole, known)
            kinds[kind] += 1
            outcomes[outcome.partition(":")[0]] += 1
            if outcome.startswith("FAILED"):
                failures.append(f"{number} ({kind}): {outcome}")
            told_by_manifest = by_manifest(damaged, whole)
            changed += told_by_manifest is not None
            given_away += bool(told_by_manifest)
            shutil.rmtree(work / "damaged")
        found[name] = {
            "mutations": each,
            "outcomes": dict(outcomes),
            "kinds": dict(sorted(kinds.items())),
            "failures": failures,
            "listed files changed": changed,
            "found by the manifest": given_away,
        }
        told(f"{name}: {dict(outcomes)}; manifest {given_away} of {changed}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign; exit 1 where anything failed."""
    parser = argparse.ArgumentParser(prog="python -m eval.mutations", description=__doc__)
    parser.add_argument("--each", type=int, default=500, help="mutations of each format")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        found = campaign(Path(work), asked.each, asked.seed, print)
    command = f"python -m eval.mutations --each {asked.each} --seed {asked.seed}"
    made = {"kind": "mutations", "title": "Damaged checkpoints", "text": TEXT, "formats": found}
    write_raw(NAME, {**made, **provenance(command)})
    (REPORTS / f"{NAME}.md").write_text(render(NAME), encoding="utf-8")
    failures = [f for each in found.values() for f in each["failures"]]
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
