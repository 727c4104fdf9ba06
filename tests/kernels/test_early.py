"""Kernels that a GPU starts early keep the rules of `kernels/early`, seen in their PTX for Hopper:
this needs no GPU. That their results are the same there is what the other tests here are for.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from ftjob.kernels.early import starts_early

# Run by itself, because Triton compiles nothing where it interprets. Prints what every kernel does
# with memory and with its neighbours, in order: a line each of name, PDL and events.
PROGRAM = """
import re

import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from ftjob.kernels import add_norm, embed, few_rows, greedy, highest, one_shot, put, step_attention

WIDE = dict.fromkeys(("table", "slots"), "*i64")
TYPES = WIDE | dict.fromkeys(("lineage", "arrived", "epochs", "failed"), "*i32")
TYPES |= dict.fromkeys(("scale", "eps"), "fp32") | {"sums": "*fp32"}
TYPES |= dict.fromkeys("rows outputs cells count columns stride tries".split(), "i32")
TYPES |= dict.fromkeys("x_stride weight_stride q_stride new_stride lineage_stride".split(), "i32")
PRODUCT = dict(INPUTS=1024, COLUMNS=2, SHARE=1, SPLITS=1, AHEAD=1, EVEN=True, SCALED=False)
PRODUCT |= dict(BIASED=True, ACTIVATION="relu")
MAIL = dict(RANK=0, WAYS=2, ROWS=8, ROOM=512)
LOGITS = dict(logits="*fp32", found="*fp32", places="*i32")
NORM = dict(PRODUCT_BIAS=True, BIAS=True, CENTRED=True)
STREAM = NORM | dict(WIDTH=1024, PADDED=1024)
KERNELS = {
    "plain": (few_rows._product, PRODUCT | dict(ROWS=1, DEPTH=1024, VECTOR=8), dict(scale="*fp32")),
    "matrices": (
        few_rows._product,
        PRODUCT | dict(ROWS=16, COLUMNS=32, DEPTH=128, SHARE=8, VECTOR=0),
        dict(scale="*fp32"),
    ),
    "add_norm": (add_norm._add_norm, STREAM | dict(ADDS=True, ROWS=1), {}),
    "owed": (add_norm._add_norm, STREAM | dict(ADDS=False, ROWS=1), dict(product_bias="*fp32")),
    "many": (add_norm._add_norm, STREAM | dict(ADDS=False, ROWS=4), {}),
    "attention": (
        step_attention._look,
        dict(SIZE=64, PADDED=64, LANES=1, HELD=1, KEYS=32, OWN=True, REACH=0, BIASED=False)
        | dict(STAGES=1),
        {},
    ),
    "ahead": (
        step_attention._look,
        dict(SIZE=64, PADDED=64, LANES=1, HELD=16, KEYS=16, OWN=True, REACH=0, BIASED=False)
        | dict(STAGES=3),
        {},
    ),
    "sum": (
        one_shot._sum,
        MAIL | NORM | dict(WORDS=512, PADDED=512, TYPE=tl.bfloat16, EACH=2, NORMS=True),
        dict(x="*i32"),
    ),
    "gather": (one_shot._gather, MAIL, dict(x="*i32", out="*i32")),
    "embed": (
        embed._embed,
        dict(WIDTH=1024, PADDED=1024, PLACED=True),
        dict(ids="*i64", positions="*i64", first="i32", rows="i32", table="*bf16"),
    ),
    "find": (highest._find, dict(K=2, COLUMNS=1024), LOGITS),
    "merge": (
        highest._merge,
        dict(K=2, HELD=2, SIZE=128, PARTS=64),
        LOGITS | dict(columns="*i64", parts="i32", values="*fp32", norms="*fp32"),
    ),
    "greedy": (
        greedy._take,
        dict(LOOKS=2, WIDTH=1, LANES=1, ENDS=1),
        dict.fromkeys("ids tokens length limit ends chosen".split(), "*i64")
        | dict.fromkeys("values norms figures".split(), "*fp32")
        | dict.fromkeys("done finished".split(), "*i1"),
    ),
    "put": (put._put, dict(SIZE=64, WIDTH=1024, PADDED=1024), dict(cells="*i64")),
}
EVENT = re.compile(
    r"griddepcontrol\\.(\\w+)|\\b(ld|st|atom)(?:\\.\\w+)*\\.global|(cp)\\.async\\.c[ag]"
)
for name, (kernel, constants, types) in KERNELS.items():
    names = kernel.arg_names
    for pdl in (False, True):
        known = constants | {"PDL": pdl}
        kinds = {n: "constexpr" if n in known else (TYPES | types).get(n, "*bf16") for n in names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n not in known}
        values = {(names.index(n),): value for n, value in known.items()}
        source = ASTSource(kernel, kinds, values, aligned)
        options = dict(num_warps=4, num_stages=2, launch_pdl=pdl)
        ptx = compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
        print(name, pdl, *("".join(filter(None, found)) for found in EVENT.findall(ptx)))
"""
# Loads behind the wait, of one vector a thread: x; none but copies; residual and product, or the
# residual alone, of one row or of four.
BEHIND = {"plain": 1, "matrices": 0, "add_norm": 2, "owed": 1, "many": 4}


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], list[str]]:
    """What each kernel does, by its name and PDL."""
    about = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | about,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return {(name, early == "True"): found for name, early, *found in lines}


def test_they_wait_before_all_but_their_weights(
    events: dict[tuple[str, bool], list[str]],
) -> None:
    assert len(events) == 28
    for (name, early), found in events.items():
        if not early:
            assert not {"wait", "launch_dependents"} & set(found), name
            continue
        assert found.count("wait") == found.count("launch_dependents") == 1, name
        before = found[: found.index("wait")]
        assert "launch_dependents" in before, name
        assert set(before) <= {"ld", "launch_dependents"}, name
        assert {"st", "ld", "cp"} & set(found[len(before) :]), name


def test_weights_are_read_ahead(events: dict[tuple[str, bool], list[str]]) -> None:
    for name, loads in BEHIND.items():
        found = events[name, True]
        wait = found.index("wait")
        assert found[:wait].count("ld"), name
        assert found[wait:].count("ld") == loads, (name, found)
    assert events["sum", True][: events["sum", True].index("wait")].count("ld")


def test_no_device_without_it_starts_early() -> None:
    assert not starts_early(torch.device("cpu"))
    if torch.cuda.is_available():
        newer = torch.cuda.get_device_capability() >= (9, 0)
        assert starts_early(torch.device("cuda", 0)) == newer
