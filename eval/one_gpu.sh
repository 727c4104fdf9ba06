#!/usr/bin/env bash
# one_gpu.sh COMMAND...: the command as a rank that sees one GPU, that of its number on this node, by
# Open MPI, MPICH or Slurm. `mpirun -n 2 bash eval/one_gpu.sh python -m ftjob ...`
set -euo pipefail
local_rank=${OMPI_COMM_WORLD_LOCAL_RANK:-${MPI_LOCALRANKID:-${SLURM_LOCALID:-${PMI_RANK:-}}}}
export CUDA_VISIBLE_DEVICES=${local_rank:?one_gpu.sh: no launcher gives this process a number}
exec "$@"
