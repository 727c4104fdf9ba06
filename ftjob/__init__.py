"""ftjob: batch inference jobs for GPT- and T5-type models on Slurm and MPI clusters.

A batch goes command -> configuration -> plan -> rank -> device thread -> model -> journal ->
report; `__main__` is where it enters.
"""

from __future__ import annotations

__version__ = "0.1.0"
