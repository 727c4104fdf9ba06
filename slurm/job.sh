# shellcheck shell=bash
# What the batch scripts here share, and the scripts that cluster=slurm submits: where the run
# folder is, what the job ended with, and whether it comes back. To be sourced.
#
# The code is status.json's. Only where no attempt began does the launcher's count: srun makes 137 or
# 143 of many codes, because it kills the ranks that are still leaving.

ftjob_say() { printf 'ftjob: %s\n' "$*" >&2; }

# ftjob_begin OVERRIDE...: sets ftjob_run, the run folder; and ftjob_arguments, the overrides with
# run.dir among them, because a job that comes back must find its folder again.
ftjob_begin() {
  local argument end
  : "${SLURM_JOB_ID:?is not set: start this by sbatch}"
  ftjob_run='' ftjob_pid='' ftjob_arguments=("$@")
  for argument in "$@"; do
    case $argument in
      run.dir=* | +run.dir=* | ++run.dir=*) ftjob_run=${argument#*=} ;;
    esac
  done
  ftjob_run=${ftjob_run#[\'\"]} ftjob_run=${ftjob_run%[\'\"]}
  ftjob_run=${ftjob_run/#\~\//$HOME/}
  if [[ -z $ftjob_run || $ftjob_run == null ]]; then
    ftjob_run=runs/job$SLURM_JOB_ID
    ftjob_arguments+=("run.dir=$ftjob_run")
    mkdir -p runs
    [[ -e runs/latest && ! -L runs/latest ]] || ln -sfn "job$SLURM_JOB_ID" runs/latest
  fi
  ftjob_before=$(ftjob_mark) ftjob_held=$(ftjob_attempts)
  # Since 22.05 srun does not take sbatch's --cpus-per-task over by itself.
  if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
  fi
  # Older Slurm does not say when the job ends, and lets pass what an outer job was told. Where
  # there is no end, squeue prints words.
  if command -v squeue >/dev/null; then
    end=$(squeue -h -j "$SLURM_JOB_ID" -o %e || true)
    if [[ $end == [0-9]* ]]; then
      SLURM_JOB_END_TIME=$(date -d "$end" +%s)
      export SLURM_JOB_END_TIME
    fi
  fi
  # The ranks get TERM too, and drain; the shell must live to see how they end.
  trap : TERM
  trap 'ftjob_forward USR2' USR2
}

# Which status.json lies there: it is replaced, never changed.
ftjob_mark() { stat -c '%i %y' -- "$ftjob_run/status.json" 2>/dev/null || true; }

# The code in a status.json that is new; none in one that a report made while the ranks ran.
ftjob_code() {
  if [[ $(ftjob_mark) != "$ftjob_before" ]]; then
    sed -n 's/^  "code": \([0-9][0-9]*\),$/\1/p' "$ftjob_run/status.json"
  fi
}

# How many status files the attempts have left there.
ftjob_attempts() {
  { find "$ftjob_run/status" -name 'rank*.json' 2>/dev/null || true; } | wc -l
}

# sbatch --signal=B:USR2@... reaches this shell alone; srun passes it on.
ftjob_forward() { [[ -z $ftjob_pid ]] || kill -s "$1" "$ftjob_pid" 2>/dev/null || true; }

# ftjob_launch COMMAND...: runs the ranks, and returns with their launcher's code.
ftjob_launch() {
  local code
  "$@" &
  ftjob_pid=$!
  while :; do
    code=0
    wait "$ftjob_pid" || code=$?
    kill -0 "$ftjob_pid" 2>/dev/null || return "$code" # else a trap had interrupted the wait
  done
}

# ftjob_end CODE COMMAND...: ends the script after the ranks ended with CODE, or has the job requeued.
# COMMAND runs one ftjob process.
ftjob_end() {
  local code=$1 said=''
  shift
  if [[ $(ftjob_attempts) != "$ftjob_held" ]]; then
    said=$(ftjob_code)
    if [[ -z $said ]]; then # rank 0 died before it could merge
      "$@" report "$ftjob_run" report.over=true >/dev/null || true
      said=$(ftjob_code)
    fi
  fi
  code=${said:-$code}
  [[ $code -ne 75 ]] || ftjob_requeue
  said="what is said above"
  [[ ! -e $ftjob_run/status.json ]] || said=$ftjob_run/status.json
  [[ $code -eq 0 ]] || ftjob_say "job $SLURM_JOB_ID ends with $code; see $said"
  exit "$code"
}

# Drained: the same job comes back, unless Slurm is about to end it. scancel, requeue and
# preemption send TERM as well, and requeueing a cancelled job would revive it.
ftjob_requeue() {
  local state
  if ! command -v scontrol >/dev/null; then
    ftjob_say "drained; there is no scontrol here: requeueing is left to whoever started this"
    exit 75
  fi
  state=$(squeue -h -j "$SLURM_JOB_ID" -o %T || true)
  if [[ $state != RUNNING ]]; then
    ftjob_say "drained; the job is not requeued from here: its state is ${state:-unknown}"
  elif scontrol requeue "$SLURM_JOB_ID"; then
    ftjob_say "drained; job $SLURM_JOB_ID is requeued"
  else
    ftjob_say "drained; Slurm did not requeue the job: run the same command again to go on"
  fi
  exit 75
}
