#!/usr/bin/env bash
#SBATCH --job-name=ftjob
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=01:00:00
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=ftjob-%j.log
#
# sbatch [options of sbatch] slurm/run.sh OVERRIDE...
#
# One rank a node under srun. FTJOB_MPI is srun's --mpi (pmi2: mpich, Intel MPI; pmix: Open MPI),
# FTJOB_PYTHON the interpreter. Options given to sbatch come before the #SBATCH lines.
set -euo pipefail

# sbatch runs a copy of this file in a folder of its own.
here=$(dirname -- "$(readlink -f -- "$0")")
if [[ ! -e $here/job.sh ]]; then
  command=$(scontrol show job "${SLURM_JOB_ID:-}" | sed -n 's/^ *Command=//p')
  here=${command%%/run.sh*}
fi
# shellcheck source=slurm/job.sh
. "$here/job.sh"

ftjob_begin "$@"
python=${FTJOB_PYTHON:-python}
code=0
ftjob_launch srun --ntasks="${SLURM_JOB_NUM_NODES:-1}" --ntasks-per-node=1 \
  --mpi="${FTJOB_MPI:-pmi2}" --kill-on-bad-exit=1 "$python" -m ftjob "${ftjob_arguments[@]}" || code=$?
ftjob_end "$code" "$python" -m ftjob
