#!/usr/bin/env bash
#SBATCH --job-name=ftjob
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=ftjob-%j.log
#
# FTJOB_IMAGE=IMAGE sbatch [options of sbatch] slurm/run_docker.sh OVERRIDE...
#
# run.sh with the ranks in Docker containers, where there is no Pyxis: MPICH's mpirun starts one on
# each host of the allocation. FTJOB_MPIRUN is that mpirun, FTJOB_MOUNTS further mounts (FROM:TO,...),
# FTJOB_DOCKER_ARGS more words for docker run, such as `--gpus all`, FTJOB_PYTHON the image's
# interpreter. Containers are no children of Slurm's: this script passes its signals on to them.
set -euo pipefail

here=$(dirname -- "$(readlink -f -- "$0")")
if [[ ! -e $here/job.sh ]]; then
  command=$(scontrol show job "${SLURM_JOB_ID:-}" | sed -n 's/^ *Command=//p')
  here=${command%%/run_docker.sh*}
fi
# shellcheck source=slurm/job.sh
. "$here/job.sh"

: "${FTJOB_IMAGE:?is not set: name the image that has ftjob}"
ftjob_begin "$@"
name=ftjob-$SLURM_JOB_ID
nodes=${SLURM_JOB_NUM_NODES:-1}
# shellcheck disable=SC2317 # called by traps
on_each() { srun --overlap --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 "$@" || true; }
# shellcheck disable=SC2317
ftjob_forward() { on_each docker kill --signal="$1" "$name"; }
trap 'ftjob_forward TERM' TERM
trap 'on_each docker rm --force "$name" >/dev/null 2>&1' EXIT

# Hydra gives its ranks an open file by default; with -pmi-port an address, which a container
# can use, and a number, but not how many there are. The names alone make docker take the values of
# the process that starts it.
export PMI_SIZE=$nodes
# shellcheck disable=SC2016 # expanded by each rank's shell
ranked=(bash -c 'export PMI_RANK=$PMI_ID; exec "$@"' rank)
docker=(docker run --rm --network=host --ipc=host --volume "$PWD:$PWD" --workdir "$PWD")
for word in PMI_RANK PMI_SIZE PMI_PORT PMI_ID SLURM_JOB_ID SLURM_JOB_END_TIME \
  SLURM_RESTART_COUNT OMP_NUM_THREADS; do
  docker+=(--env "$word")
done
IFS=, read -ra mounts <<<"${FTJOB_MOUNTS:-}"
for mount in "${mounts[@]}"; do
  docker+=(--volume "$mount")
done
read -ra more <<<"${FTJOB_DOCKER_ARGS:-}"
docker+=("${more[@]}")
image=("$FTJOB_IMAGE" "${FTJOB_PYTHON:-python}" -m ftjob)

code=0
ftjob_launch "${FTJOB_MPIRUN:-mpirun}" -pmi-port -ppn 1 -n "$nodes" \
  "${ranked[@]}" "${docker[@]}" --name "$name" "${image[@]}" "${ftjob_arguments[@]}" || code=$?
unset PMI_SIZE
ftjob_end "$code" "${docker[@]}" "${image[@]}"
