"""The rest of the command line: help, composition, sweeps, own model files, odd names, secrets."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from harness import CLI, DEMO, HIDDEN, Place, lines, load

pytestmark = pytest.mark.timeout(60)


def test_help_is_light(place: Place) -> None:
    timed = Place(place.cwd, (CLI[0], "-X", "importtime", *CLI[1:]))
    done = timed("--help").expect(0)
    for words in ("python -m ftjob", "report    RUN", "model: demo_gpt, demo_t5", "limit: 500"):
        assert words in done.out
    assert re.search(r"^  doctor +look at this machine", done.out, re.MULTILINE)
    imported = set(re.findall(r"\| +([\w.]+)$", done.err, re.MULTILINE))
    assert "ftjob.errors" in imported
    assert not imported.intersection({"torch", "mpi4py", "datasets", "matplotlib"})


@pytest.mark.parametrize("command", ["report", "compare"])
def test_help_of_what_takes_folders(place: Place, command: str) -> None:
    assert "compare   RUN_A RUN_B" in place(command, "--help").expect(0).out


def test_cfg_prints_what_runs(place: Place) -> None:
    done = place("--cfg", "job", "model=gpt345m", "dataset.limit=7").expect(0)
    composed = yaml.safe_load(done.out)
    assert composed["model"]["arch"]["layers"] == 24
    assert composed["dataset"]["limit"] == 7
    assert composed["run"]["deadline_s"] == 60.0
    assert not list(place.cwd.iterdir())


def test_sweep(place: Place, base: tuple[str, ...]) -> None:
    place("-m", *base, "run.name=a,b", "dataset.limit=4").expect(0)
    runs = sorted(f for f in (place.cwd / "runs").iterdir() if not f.is_symlink())
    for run, name in zip(runs, "ab", strict=True):
        assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d_\d\d-\d\d-\d\d_{name}", run.name)
        assert len(lines(run / "samples.jsonl")) == 4
        assert load(run / "results.json")["name"] == name
    assert sorted(f.name for f in place.cwd.iterdir()) == ["runs"]


def test_sweep_goes_on_after_a_refusal(place: Place) -> None:
    done = place("-m", "parallel.tensor=5,7").expect(2, "parallel.tensor=5", "parallel.tensor=7")
    assert "Traceback" not in done.err


def test_own_model_file(place: Place, tiny: Path) -> None:
    own = place.cwd / "mine" / "model" / "parrot.yaml"
    own.parent.mkdir(parents=True)
    settings = {"name": "parrot", "family": "gpt2", "checkpoint": str(tiny / "model")}
    own.write_text(yaml.safe_dump(settings), encoding="utf-8")
    done = place("plan", "--config-dir", "mine", "model=parrot", "plan.input_len=90").expect(0)
    assert re.search(r"^model +parrot \(gpt2\)", done.out, re.MULTILINE)
    place("plan", "model=parrot").expect(2, "model=parrot", "no such model")
    place("model=parrot", "--config-dir=mine/model").expect(2, "model=parrot")
    place("model=parrot", "--config-dir=nowhere").expect(2, "--config-dir nowhere: no such folder")
    listed = place("models", "--config-dir=mine").expect(0)
    assert re.search(r"^parrot +gpt2 ", listed.out, re.MULTILINE)


def test_models(place: Place) -> None:
    done = place("models").expect(0)
    rows = {line.split()[0]: line for line in done.out.splitlines()}
    assert "354.8 M" in rows["gpt345m"]
    assert "openai-community/gpt2-medium" in rows["gpt345m"]
    assert "builtin:demo_gpt" in rows["demo_gpt"]


def test_plan(place: Place, base: tuple[str, ...]) -> None:
    """The demo by default, a local checkpoint by its own shape, and far more than this machine."""
    assert "8 layers, 12 heads" in place("plan").expect(0).out
    out = place("plan", *base[:2], "plan.input_len=100", "plan.output_len=8").expect(0).out
    assert f"5 layers, 4 heads of 16, hidden {HIDDEN}" in out
    large = ("model=gpt175b", "cluster.nodes=16", "cluster.devices_per_node=8", "model.dtype=bf16")
    split = ("parallel=tp8", "parallel.pipeline=16", "cluster.device=cuda")
    done = place("plan", *large, *split).expect(0)
    assert "tensor 8 x pipeline 16 x data 1 = 128 cuda devices on 16 ranks" in done.out
    assert not list(place.cwd.iterdir())


ODD = 'it\'s "my" $(touch owned) `touch owned` ü; & <b>run {x}'


def test_odd_names(place: Place, base: tuple[str, ...]) -> None:
    """A name is text wherever it goes: on disk, in the page, in the command to run again."""
    quoted = json.dumps(ODD, ensure_ascii=False)
    arguments = (*base, "dataset.limit=3", f"run.dir={quoted}", f"run.name={quoted}")
    place(*arguments).expect(0)
    run = place.cwd / ODD
    assert len(lines(run / "samples.jsonl")) == 3
    results = load(run / "results.json")
    assert results["name"] == ODD
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<b>run" not in page
    again = shlex.split(results["command"])
    assert again == ["python", "-m", "ftjob", *arguments]
    place(*again[3:]).expect(0, "3 rows are done")
    assert sorted(f.name for f in place.cwd.iterdir()) == [ODD]


SECRETS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "WANDB_API_KEY",
    "SLURM_JWT",
    "SLURM_CRED_COOKIE",
    "OMPI_MCA_auth",
    "GITHUB_PAT",
)


def test_environment_of_a_batch_script(place: Place, base: tuple[str, ...]) -> None:
    """Recorded without its secrets, also those within addresses. Its SLURM_NTASKS makes it no
    step of several ranks, and threads are set where nobody set them."""
    secrets = {name: f"hunter2-{i}" for i, name in enumerate(SECRETS)}
    secrets["FTJOB_MIRROR"] = "https://me:hunter2@mirror/models"
    batch = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}
    env = {**secrets, **batch, "OMP_NUM_THREADS": None}
    (place.cwd / "run").mkdir()  # made beforehand, as scripts do; empty, so it is taken
    place(*base, "dataset.limit=2", "run.dir=run", env=env).expect(0)
    recorded = load(place.cwd / "run" / "environment.json")["variables"]
    assert recorded["SLURM_JOB_ID"] == "4711"
    assert int(recorded["OMP_NUM_THREADS"]) >= 1
    files = [f for f in (place.cwd / "run").rglob("*") if f.is_file()]
    assert [str(f) for f in files if b"hunter2" in f.read_bytes()] == []


def test_entry_point(place: Place, finished: tuple[Path, str, str]) -> None:
    """The installed command `ftjob` is the same program."""
    command = Path(sys.executable).with_name("ftjob")
    installed = Place(place.cwd, (str(command),))
    run = str(finished[0] / "run")
    assert installed("compare", run, run).expect(0).out.startswith("240 rows: the same answers")


def test_demo_is_the_default(place: Place) -> None:
    """The embedded model over the first rows of LAMBADA: the figures that transformers gives."""
    place("dataset.limit=8", "run.dir=run").expect(0)
    results = load(place.cwd / "run" / "results.json")
    assert results["model"]["checkpoint"] == "builtin:demo_gpt"
    assert results["n-samples"]["lambada"] == {"original": 5153, "effective": 8}
    samples = lines(place.cwd / "run" / "samples.jsonl")
    assert [s["correct"] for s in samples].count(True) == 1
    assert sum(s["logprob"] for s in samples) / 8 == pytest.approx(-7.4104, abs=1e-3)
    assert DEMO.is_dir()
