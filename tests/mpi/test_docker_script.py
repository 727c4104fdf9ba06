"""slurm/run_docker.sh with MPICH's own mpirun and a docker that only starts the command: what a
container is given by name must be enough for two ranks to find each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import Place, load

pytestmark = pytest.mark.timeout(90)
SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "run_docker.sh"
ROOT = SCRIPT.parents[1]
# Like docker run: of the environment only what --env names comes in; --name and others are taken.
DOCKER = f"""#!{sys.executable}
import os, sys
words, env = sys.argv[2:], {{"PATH": os.environ["PATH"], "PYTHONPATH": "{ROOT}"}}
while words[0].startswith("--"):
    option = words.pop(0)
    if option in ("--env", "--volume", "--workdir", "--name"):
        value = words.pop(0)
        if option == "--env" and value in os.environ:
            env[value] = os.environ[value]
assert words.pop(0) == "an image"
os.execvpe(words[0], words, env)
"""


def test_two_containers(place: Place, base: tuple[str, ...]) -> None:
    tools = place.cwd / "bin"
    tools.mkdir()
    for name, text in (("docker", DOCKER), ("srun", "#!/bin/sh\n"), ("squeue", "#!/bin/sh\n")):
        (tools / name).write_text(text, encoding="utf-8")
        (tools / name).chmod(0o755)
    env = {
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "3",
        "SLURM_JOB_NUM_NODES": "2",
        "FTJOB_IMAGE": "an image",
        "FTJOB_PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "HOME": str(place.cwd),
    }
    command = ["bash", str(SCRIPT), *base, "dataset.limit=40", "batch.max_tokens=128"]
    done = subprocess.run(
        command, cwd=place.cwd, env=env, capture_output=True, text=True, timeout=80, check=False
    )
    assert done.returncode == 0, done.stderr
    ranks = load(place.cwd / "runs" / "job3" / "status.json")["ranks"]
    assert [(r["rank"], r["code"]) for r in ranks] == [(0, 0), (1, 0)]
    assert sum(r["rows"] for r in ranks) == 40
