"""The least work that a size of `bench` must do, against what is known of some, step by step, and
against the model's own matrices.
"""

from __future__ import annotations

import pytest

from ftjob.bench.roofline import Sizes, Work, decode, prefill, scoring
from ftjob.config.compose import compose
from ftjob.job import shape_source
from ftjob.model.arch import Arch, Relative


def sizes(model: str, stored: int = 2) -> Sizes:
    config = compose([f"model={model}", "model.checkpoint=random"])
    return Sizes(shape_source(config, "random").arch, 2, stored)


# What is known of these sizes at a copy of 4.2 TB/s and a product of 785 TFLOP/s: milliseconds.
LIMITS = {
    "345M, one row": (("gpt345m", 2), (1, 1, 512, 128), 24),
    "345M, 8 rows": (("gpt345m", 2), (8, 1, 512, 16), 7.25),
    "345M, 256 rows": (("gpt345m", 2), (256, 1, 128, 128), 196),
    "345M, int8": (("gpt345m", 1), (1, 1, 512, 128), 14.3),
    "T5, one row": (("t5_base", 2), (1, 1, 32, 32), 1.95),
    "T5, 128 rows": (("t5_base", 2), (128, 1, 32, 32), 4.6),
    "T5, beams": (("t5_base", 2), (128, 4, 32, 32), 6.5),
}


@pytest.mark.parametrize(("model", "size", "known"), LIMITS.values(), ids=LIMITS.keys())
def test_least_times(model: tuple[str, int], size: tuple[int, ...], known: float) -> None:
    made, (rows, lanes, length, new) = sizes(*model), size
    works = (prefill(made, rows, length), decode(made, rows, lanes, length, new))
    found = 1e3 * sum(work.seconds(4.2e12, 785e12) for work in works)
    assert found == pytest.approx(known, rel=0.03)


def test_least_time_of_scoring() -> None:
    """All of LAMBADA: 430,230 tokens, 1.5 of each row's targets."""
    work = scoring(sizes("gpt345m"), [(82, 1.5)] * 5153)  # type: ignore[list-item]
    assert work.seconds(4.2e12, 785e12) == pytest.approx(0.33, rel=0.01)


def counted(arch: Arch, rows: int, lanes: int, length: int, new: int) -> tuple[float, float]:
    """Cache bytes and attention operations of the decode steps, one key after the other."""
    kept = flop = 0.0
    for step in range(1, new):
        own = step + (1 if arch.seq2seq else 0)
        kept += 2 * 2 * arch.width * arch.layers * rows * (length + lanes * own)
        flop += 4 * arch.width * arch.layers * rows * lanes * (length + own)
    return kept, flop


@pytest.mark.parametrize("model", ["gpt345m", "t5_base"])
def test_steps_add_up_key_by_key(model: str) -> None:
    made = sizes(model)
    kept, flop = counted(made.arch, 3, 4, 20, 9)
    work = decode(made, 3, 4, 20, 9)
    weights = 8 * 2 * (made.arch.layers * made.layer + made.head)
    assert work.bytes == pytest.approx(weights + kept)
    products = 8 * 2 * (made.arch.layers * made.layer + made.head) * 12
    assert work.flop == pytest.approx(products + flop)
    assert decode(made, 3, 4, 20, 1) == Work(0, 0)


def test_matrices_are_those_of_the_model() -> None:
    """The elements counted are the parameters without embeddings, norms and biases."""
    gpt = shape_source(compose(["model=gpt345m", "model.checkpoint=random"]), "random")
    made = Sizes(gpt.arch, 2, 2)
    assert gpt.arch.layers * made.layer + made.head == pytest.approx(gpt.parameters, rel=0.005)
    t5 = shape_source(compose(["model=flan_t5_base", "model.checkpoint=random"]), "random")
    made = Sizes(t5.arch, 2, 2)
    whole = t5.arch.layers * (made.layer + made.cross) + t5.arch.encoder_layers * made.encoder
    embedding = t5.arch.vocab * t5.arch.hidden
    assert whole + made.head + embedding == pytest.approx(t5.parameters, rel=0.001)
    relative = Relative(32, 128)
    tiny = Arch("t5", 1, 1, 4, 8, 16, 10, None, 1e-6, "relu", True, 1, "rms", relative)
    assert (Sizes(tiny, 2, 2).layer, Sizes(tiny, 2, 2).cross) == (6 * 32 + 256, 64)
