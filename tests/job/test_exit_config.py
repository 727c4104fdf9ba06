"""Exit 2: what cannot run is refused before anything starts, in one message of key, value and rule.

No refusal may leave a run folder behind, show a traceback, or be slowed down by importing torch.
"""

from __future__ import annotations

import pytest
from harness import Place

MPIRUN = {"PMI_RANK": "0", "PMI_SIZE": "2"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}

REFUSED = {
    "a least perplexity": (
        ["dataset.expect={perplexity: 10}"],
        ["dataset.expect.perplexity=10", "less is better", "acc"],
    ),
    "a metric that is not computed": (
        ["dataset.expect={acx: 0.1}"],
        ["dataset.expect.acx=0.1", "no such metric", "Legal: acc, last_token_acc"],
    ),
    "no name for the run folder": (["run.dir="], ["run.dir=", "not empty"]),
    "a folder of groups that is not there": (
        ["--config-dir=nowhere"],
        ["--config-dir nowhere: no such folder"],
    ),
    "old flag": (["--tensor_para_size=2"], ["--tensor_para_size=2", "parallel.tensor"]),
    "unknown key": (["dataset.limt=8"], ["dataset.limt=8", "Did you mean dataset.limit?"]),
    "unknown group": (["modle=gpt345m"], ["modle=gpt345m", "Did you mean model"]),
    "unknown choice": (["model=gpt354m"], ["model=gpt354m", "Did you mean gpt345m?"]),
    "no override": (["dataset.limit"], ["dataset.limit", "no such command"]),
    "broken override": (["run.name=a", "dataset.limit"], ["'dataset.limit'", "key=value"]),
    "wrong type": (["dataset.limit=many"], ["dataset.limit=many", "int | null"]),
    "below the rule": (["dataset.limit=0"], ["dataset.limit=0", "at least 1"]),
    "wrong word": (["model.dtype=fp16"], ["model.dtype=fp16", "Did you mean f16?"]),
    "several values": (["dataset.limit=1,2"], ["dataset.limit=1,2", "-m"]),
    "old name": (["tensor_para_size=2"], ["tensor_para_size", "parallel.tensor"]),
    "two sources": (["dataset.path=a.jsonl", "dataset.hub=a/b"], ["dataset.path=a.jsonl", "a/b"]),
    "no checkpoint": (["model=gpt2"], ["model.checkpoint", "PATH"]),
    "heads by tensor": (["parallel.tensor=5"], ["parallel.tensor=5", "12 attention heads"]),
    "layers by pipeline": (["parallel.pipeline=9"], ["parallel.pipeline=9", "8 layers", "1 to 8"]),
    "world is not T x P x D": (["parallel.data=3"], ["parallel.data=3", "1 device"]),
    "nodes that were not started": (["cluster.nodes=2"], ["cluster.nodes=2", "mpirun -n 2"]),
    "no devices": (
        ["cluster.devices_per_node=0"],
        ["cluster.devices_per_node=0", "from 1 to 1024"],
    ),
    "no GPUs": (["cluster.device=cuda"], ["cluster.device=cuda", "cluster.device=cpu"]),
    "unknown command": (["evaluate"], ["evaluate", "no such command", "run"]),
    "report without a run": (["report"], ["usage", "RUN"]),
    "report of no run": (["report", "."], ["is not a run folder"]),
    "compare of one run": (["compare", "."], ["usage", "RUN_A RUN_B"]),
    "compare of no runs": (["compare", ".", "."], ["samples.jsonl"]),
    "plan past the positions": (
        ["plan", "plan.input_len=600"],
        ["plan.input_len=600", "512 positions"],
    ),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", REFUSED)
def test_refused(place: Place, name: str) -> None:
    arguments, words = REFUSED[name]
    done = place(*arguments).expect(2, *words)
    assert done.err.startswith("ftjob: ")
    assert "Traceback" not in done.err
    assert done.out == ""
    assert not list(place.cwd.iterdir())


@pytest.mark.timeout(20)
@pytest.mark.parametrize("world", [MPIRUN, OPEN_MPI, SRUN], ids=["pmi", "openmpi", "srun"])
def test_a_launcher_that_mpi_does_not_know(place: Place, world: dict[str, str]) -> None:
    place("dataset.limit=2", env=world).expect(2, "rank 0 of 2", "rank 0 of 1", "--mpi")
    assert not list(place.cwd.iterdir())


@pytest.mark.timeout(20)
def test_sweep_under_a_launcher_is_refused(place: Place) -> None:
    done = place("-m", "run.name=a,b", "dataset.limit=2", env=MPIRUN)
    done.expect(2, "-m under mpirun or srun")
    assert not list(place.cwd.iterdir())


@pytest.mark.timeout(20)
def test_launcher_without_numbers_is_refused(place: Place) -> None:
    done = place(env={"PMI_RANK": "0", "PMI_SIZE": "two"})
    done.expect(2, "PMI_SIZE='two'", "numbers")


@pytest.mark.timeout(20)
def test_refusals_do_not_import_torch(place: Place) -> None:
    code = "import atexit, sys\natexit.register(lambda: print('torch' in sys.modules))"
    done = place.driver("modules", code)("parallel.tensor=5").expect(2, "parallel.tensor=5")
    assert done.out == "False\n"
