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
# FTJOB_IMAGE=IMAGE sbatch [options of sbatch] slurm/run_pyxis.sh OVERRIDE...
#
# run.sh with the ranks in containers of Enroot by Slurm's Pyxis plugin. FTJOB_IMAGE is a .sqsh file
# or registry#name:tag, FTJOB_MOUNTS further mounts (FROM:TO,...); the folder of the job is there
# under its own name. FTJOB_PYTHON is the interpreter in the image.
set -euo pipefail

here=$(dirname -- "$(readlink -f -- "$0")")
if [[ ! -e $here/job.sh ]]; then
  command=$(scontrol show job "${SLURM_JOB_ID:-}" | sed -n 's/^ *Command=//p')
  here=${command%%/run_pyxis.sh*}
fi
# shellcheck source=slurm/job.sh
. "$here/job.sh"

: "${FTJOB_IMAGE:?is not set: name the image that has ftjob}"
ftjob_begin "$@"
container=(
  --container-image="$FTJOB_IMAGE"
  --container-mounts="$PWD:$PWD${FTJOB_MOUNTS:+,$FTJOB_MOUNTS}"
  --container-workdir="$PWD"
)
python=${FTJOB_PYTHON:-python}
code=0
ftjob_launch srun --ntasks="${SLURM_JOB_NUM_NODES:-1}" --ntasks-per-node=1 \
  --mpi="${FTJOB_MPI:-pmi2}" --kill-on-bad-exit=1 "${container[@]}" \
  "$python" -m ftjob "${ftjob_arguments[@]}" || code=$?
ftjob_end "$code" srun --nodes=1 --ntasks=1 "${container[@]}" "$python" -m ftjob
