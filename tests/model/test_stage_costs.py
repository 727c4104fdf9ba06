"""The plan's work per stage against what the decoder really multiplies, counted by torch."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ftjob.comm import Solo
from ftjob.model.arch import Arch
from ftjob.model.decoder import DecoderStage
from ftjob.model.packing import Packing
from ftjob.model.stage import Part
from ftjob.pipeline import stage_costs
from ftjob.plan import layer_spans

ARCH = Arch("gpt2", 5, 4, 8, 32, 80, 101, 64, 1e-5, "gelu_tanh", True)
META = torch.device("meta")
ROWS, LENGTH = 6, 48


def multiplied(span: tuple[int, int], wanted: int) -> float:
    """Multiply-adds per token of a stage's weights, rows of `LENGTH` tokens, `wanted` scored."""
    first, last = span[0] == 0, span[1] == ARCH.layers
    kind = (torch.float32, META)
    stage = DecoderStage(ARCH, Part(range(*span), range(0), first, last), "float", kind, Solo())
    packing = Packing.of([LENGTH] * ROWS, [LENGTH - wanted] * ROWS, META)
    tokens = ROWS * LENGTH
    ids = torch.zeros(tokens, dtype=torch.int64, device=META)
    x = ids if first else torch.empty(tokens, ARCH.hidden, device=META)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        out = stage(x, packing, lambda: None)
        if last:
            stage.logits(out)
    counts = counter.get_flop_counts()["Global"]
    return sum(counts[op] for op in counts if "mm" in str(op) and "bmm" not in str(op)) / 2 / tokens


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
@pytest.mark.parametrize("wanted", [1, 3, 48])
def test_costs_are_what_the_stages_multiply(stages: int, wanted: int) -> None:
    spans = layer_spans(ARCH.layers, stages)
    expected = stage_costs(spans, ARCH.hidden, ARCH.ffn, ARCH.vocab, wanted / LENGTH)
    assert [multiplied(span, wanted) for span in spans] == pytest.approx(expected)
