"""What the stages of a pipeline did with their time: the bubble, as measured and as predicted.

Reads what the ranks' status files say and gives `summary` its part of results.json; the report
shows both figures beside each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftjob.pipeline import formed_sizes, makespan, stage_costs
from ftjob.results.statuses import WORKING

Json = dict[str, Any]


@dataclass(frozen=True)
class _Run:
    """One replica in one attempt: its devices stage by stage, and the seconds from the start of
    its first batch to the end of its last."""

    stages: list[list[Json]]
    seconds: float

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The layers of each stage."""
        specs = [devices[0]["spec"] for devices in self.stages]
        return [(spec["first_layer"], spec["last_layer"]) for spec in specs]

    @property
    def sizes(self) -> list[int]:
        """Tokens of its micro-batches, as good as the counts tell."""
        end = self.stages[-1][0]
        return formed_sizes(end["tokens"], end["chunks"], end["largest_chunk"])


def with_stages(ranks: Sequence[Json]) -> tuple[list[Json], list[Json]]:
    """All phases and all devices of all attempts, as results.json lists them. Those of a device
    that was one stage of several have its number as `stage`."""
    phases: list[Json] = []
    devices: list[Json] = []
    for status in ranks:
        stages = {
            d["device"]: {"stage": d["spec"]["pipeline"]}
            for d in status["devices"]
            if not (d["spec"]["first"] and d["spec"]["last"])
        }
        phases += [p | stages.get(p["device"], {}) for p in status["phases"]]
        devices += [
            {k: v for k, v in d.items() if k != "spec"} | stages.get(d["device"], {})
            for d in status["devices"]
        ]
    return phases, devices


def pipeline_facts(ranks: Sequence[Json], model: Json, wanted: float | None) -> Json:
    """The `pipeline` of results.json; empty where no batch went through several stages.

    It counts every replica of every attempt that had the same stages as the latest. `bubble` is
    the share of their devices' time, from first batch to last, without work of their own;
    `predicted` is what batches of such sizes leave idle on devices of equal speed, where the share
    `wanted` of positions is scored. `each` has both by stage; `micro_batches` has a number for
    each of those replicas. Where rows are generated `wanted` is None, and both `predicted` and
    `micro_batches` are left out: a chunk's rows come and go in the decode steps.
    """
    runs = _runs(ranks)
    runs = [run for run in runs if run.spans == runs[-1].spans]
    if not runs:
        return {}
    spans = runs[0].spans
    each: list[Json] = []
    for stage, (first, last) in enumerate(spans):
        busy = sum(d["busy_s"] for run in runs for d in run.stages[stage])
        held = sum(run.seconds * len(run.stages[stage]) for run in runs)
        layers, bubble = [first, last - 1], max(0.0, 1 - busy / held)
        each.append({"stage": stage, "layers": layers, "bubble": bubble})
    found = {"stages": len(spans), "bubble": sum(e["bubble"] for e in each) / len(each)}
    if wanted is None:
        return found | {"each": each}
    costs = stage_costs(spans, model["hidden"], model["ffn"], model["vocab"], wanted)
    tokens = sum(sum(run.sizes) for run in runs)
    whole = sum(makespan(costs, run.sizes) for run in runs)
    for facts, cost in zip(each, costs, strict=True):
        facts["predicted"] = 1 - cost * tokens / whole
    predicted = sum(e["predicted"] for e in each) / len(each)
    sizes = [len(run.sizes) for run in runs]
    return found | {"micro_batches": sizes, "predicted": predicted, "each": each}


def _runs(ranks: Sequence[Json]) -> list[_Run]:
    """Every replica of several stages that got a batch through them all, attempt by attempt. One
    is left out where a rank left no word of its stages."""
    replicas: dict[tuple[int, int], list[Json]] = {}
    scored: dict[tuple[int, int, int], list[tuple[float, float]]] = {}
    for status in ranks:
        for device in status["devices"]:
            replicas.setdefault((status["attempt"], device["spec"]["data"]), []).append(device)
        for phase in status["phases"]:
            if phase["name"] in WORKING:
                key = status["attempt"], status["rank"], phase["device"]
                scored.setdefault(key, []).append((phase["start_s"], phase["end_s"]))
    found = []
    for (attempt, _), devices in sorted(replicas.items()):
        stages: dict[int, list[Json]] = {}
        for device in devices:
            stages.setdefault(device["spec"]["pipeline"], []).append(device)
        ordered = [stages[stage] for stage in sorted(stages)]
        whole = sorted(stages) == list(range(len(stages))) and ordered[-1][0]["spec"]["last"]
        times = [t for d in devices for t in scored.get((attempt, d["rank"], d["device"]), ())]
        seconds = max((b for _, b in times), default=0.0) - min((a for a, _ in times), default=0.0)
        if whole and len(stages) > 1 and seconds > 0 and ordered[-1][0].get("chunks"):
            found.append(_Run(ordered, seconds))
    return found
