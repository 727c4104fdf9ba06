"""The plan of encoder-decoder models: both stacks are cut into the stages, sizes follow the axes
that T5 has and GPT-2 has not, and the shapes in conf/model are those of the published checkpoints.
"""

from __future__ import annotations

from typing import Any

import pytest
from test_plan import ARCH, command, config, machine, plan

from ftjob.commands.plan import planned_model
from ftjob.config.compose import compose
from ftjob.config.groups import ArchConfig
from ftjob.errors import CONFIG_REFUSED, ConfigError
from ftjob.model.arch import Arch
from ftjob.model.families import family
from ftjob.plan import check_length, check_model_split


def t5(**sizes: Any) -> Arch:
    shape = {"layers": 7, "encoder_layers": 5, "heads": 6, "head_size": 8, "hidden": 20}
    return family("t5").from_shape(ArchConfig(**(shape | {"ffn": 36, "vocab": 101} | sizes)))


def test_both_stacks_are_cut_into_the_stages() -> None:
    made = plan(config(2, 3), machine(6), t5())
    spans = [
        (d.first_encoder, d.last_encoder, d.first_layer, d.last_layer)
        for d in made.devices
        if d.tensor == 0
    ]
    assert spans == [(0, 2, 0, 3), (2, 4, 3, 5), (4, 5, 5, 7)]
    assert [d.cache_bytes_per_token for d in made.devices[::2]] == [
        4 * 2 * layers * 6 * 8 // 2 for layers in (3, 2, 2)
    ]
    alone = plan(config(), machine(1)).devices[0]
    assert (alone.first_encoder, alone.last_encoder) == (0, 0)


def test_stages_and_ways_that_t5_does_not_allow_are_refused() -> None:
    check_model_split(t5(), 6, 5)
    with pytest.raises(ConfigError, match=r"pipeline=6: the model has 5 encoder.*Legal: 1 to 5\."):
        check_model_split(t5(), 1, 6)
    with pytest.raises(ConfigError, match=r"pipeline=6: the model has 3 decoder.*Legal: 1 to 3\."):
        check_model_split(t5(layers=3), 1, 6)
    with pytest.raises(ConfigError, match=r"tensor=4: the model's 6 attention heads"):
        check_model_split(t5(hidden=24), 4, 1)


def test_workspace_follows_the_axes() -> None:
    def workspace(arch: Arch, tensor: int = 1) -> int:
        made = plan(config(tensor, batch={"max_tokens": 32}), machine(tensor), arch)
        return made.workspace_bytes - 4 * 3 * -(-101 // tensor)  # logits of 3 positions

    assert workspace(ARCH) == 4 * 32 * (3 * 48 + 2 * 192)
    assert workspace(ARCH, 2) == 4 * 32 * (3 * 48 + 192)
    assert workspace(t5()) == 4 * 32 * (4 * 20 + 6 * 32 + 3 * 48)
    assert workspace(t5(variant="v1_1", ffn=90)) == 4 * 32 * (4 * 20 + 6 * 32 + 4 * 90)
    assert workspace(t5(), 3) == 4 * 32 * (4 * 20 + 2 * 32 + 48)


def test_relative_positions_have_no_end() -> None:
    check_length(t5(), 10**9, "x")


def test_t5_prints_both_stacks_and_needs_no_weights() -> None:
    split = ["parallel.tensor=2", "parallel.pipeline=2", "cluster.devices_per_node=4"]
    done = command("model=flan_t5_base", *split)
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stdout
    assert "flan_t5_base (t5): 247.6 M parameters" in done.stdout
    assert (
        "shape      12 encoder and 12 decoder layers, 12 heads of 64, hidden 768, MLP 2048 gated, "
        "vocabulary 32128, relative positions\n" in done.stdout
    )
    assert "stage  encoder  decoder  holds" in done.stdout
    stages = [line.split()[:3] for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert stages == [["0", "0-5", "0-5"], ["1", "6-11", "6-11"]]
    assert "rows of 512 + 32 tokens fit a replica" in done.stdout
    assert "248 MB   10 MB\n" in done.stdout
    beams = command("model=flan_t5_base", *split, "dataset=demo_en_de", "decode=beam4")
    assert "rows of 512 + 4 x 32 tokens fit a replica" in beams.stdout
    assert "248 MB   11.8 MB\n" in beams.stdout
    assert "bubble" not in done.stdout
    refused = command("model=t5_small", "parallel.pipeline=7", "cluster.devices_per_node=7")
    assert refused.returncode == CONFIG_REFUSED
    assert "parallel.pipeline=7: the model has 6 decoder layers" in refused.stderr


# Parameters of the published checkpoints, in millions; a tied head counts once.
PUBLISHED = {
    "t5_small": 60.5,
    "t5_base": 222.9,
    "t5_large": 737.7,
    "t5_3b": 2851.6,
    "flan_t5_small": 77.0,
    "flan_t5_base": 247.6,
    "flan_t5_large": 783.2,
    "flan_t5_xl": 2849.8,
    "mt5_small": 300.2,
    "mt5_base": 582.4,
    "mt5_large": 1229.6,
}


@pytest.mark.parametrize(("name", "millions"), PUBLISHED.items())
def test_shapes_in_conf_have_the_published_sizes(name: str, millions: float) -> None:
    source = planned_model(compose([f"model={name}"]))
    assert source.parameters / 1e6 == pytest.approx(millions, abs=0.05)
    assert source.arch.vocab == (250112 if name.startswith("mt5") else 32128)
