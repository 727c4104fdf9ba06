"""What every test gets: a machine without launcher, hub or tokens in its environment.

Set before anything is imported, because torch, huggingface_hub and MPI read it when they start.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

LAUNCHERS = ("SLURM_", "PMI_", "PMIX_", "OMPI_", "HYDRA_", "MPI_LOCAL", "CUDA_VISIBLE", "HF_")

_EMPTY = tempfile.TemporaryDirectory(prefix="ftjob-test-")

for _name in [n for n in os.environ if n.startswith(LAUNCHERS)]:
    del os.environ[_name]
os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HOME=str(Path(_EMPTY.name) / "hf_home"),
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
)
