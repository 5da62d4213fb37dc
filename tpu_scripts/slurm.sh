#!/usr/bin/env bash
# Train on a SLURM cluster, usually with GPUs: slurm.sh ACTION --name NAME …; run it in a checkout that all nodes see.
#
# Actions, in the order of a run:
#   start      submit the run. It is queued again when its time is up, when it is preempted or when a node fails, until it
#              is finished; each start resumes. A second start with the same name is refused while the first exists.
#   status     the jobs of this name
#   logs       follow the log
#   stop       stop the run; it saves first, and is not queued again
#   delete     cancel the job at once (SLURM leaves it some 30 s to save); asks, or needs --yes
#
# Options:
#   --name NAME               of the job
#   --accelerator-type TYPE   GPUs per node, as h100:8 or gpu:8; or cpu:N for N processes without GPUs
#   --nodes N                 default 1
#   --partition, --account, --time, --cpus-per-task     as of sbatch
#   --experiment EXPERIMENT   what bertgpt train runs; fields of the experiment follow a lone --
#   --workdir DIR             folder of runs that all nodes see
#   --venv DIR                virtual environment that all nodes see (default: .venv of this checkout)
#   --log FILE                default: bertgpt-NAME.log in the current folder
#   --max-restarts N          give up after so many faults (default 10); preemptions and time limits do not count as such
#   --dry-run                 print every command and run none
#   --yes                     do not ask
#
# One process for each GPU, which is what JAX expects of SLURM; it reads SLURM_JOB_ID, SLURM_STEP_NODELIST, SLURM_NTASKS,
# SLURM_PROCID and SLURM_LOCALID.
# Sources: https://slurm.schedmd.com/sbatch.html, srun.html, scancel.html, scontrol.html; jax/_src/clusters/slurm_cluster.py

set -uo pipefail
# shellcheck source=tpu_scripts/lib.sh
. "$(dirname "$0")/lib.sh"

main() {
  take_action "start status logs stop delete" "$@"
  shift
  parse_options "name accelerator-type nodes partition account time cpus-per-task experiment workdir venv log max-restarts" \
    "dry-run yes" "$@"
  check_name
  : "${opt_nodes:=1}" "${opt_max_restarts:=10}" "${opt_venv:=$ROOT/.venv}" "${opt_log:=$PWD/bertgpt-$opt_name.log}"
  check_number nodes
  check_number max-restarts
  "action_$action"
}

# The number of the job with this name, or nothing.
find_job() { query squeue --me --name "$opt_name" --noheader --format %A; }

# Sets `job`, or dies.
need_job() {
  need squeue "the tools of SLURM"
  job=$(find_job) || die "the jobs cannot be listed, see squeue's message above" 1
  if [ -n "$opt_dry_run" ]; then job=JOB; fi
  [ -n "$job" ] || die "no job $opt_name is queued or running" 1
}

action_start() {
  local kind count options job
  set_train_args
  require accelerator-type
  kind=${opt_accelerator_type%%:*} count=${opt_accelerator_type#*:}
  [[ $opt_accelerator_type =~ ^[A-Za-z0-9_.-]+:[1-9][0-9]*$ ]] ||
    die "--accelerator-type $opt_accelerator_type: must be like h100:8, gpu:8 or cpu:2"
  need sbatch "the tools of SLURM"
  job=$(find_job) || die "the jobs cannot be listed, see squeue's message above" 1
  [ -z "$job" ] || die "job $job has the name $opt_name: stop it, or choose another name"
  options=(--job-name "$opt_name" --nodes "$opt_nodes" --ntasks-per-node "$count")
  case $kind in
    cpu) ;;
    gpu) options+=(--gpus-per-node "$count") ;;
    *) options+=(--gpus-per-node "$opt_accelerator_type") ;;
  esac
  if [ -n "$opt_partition" ]; then options+=(--partition "$opt_partition"); fi
  if [ -n "$opt_account" ]; then options+=(--account "$opt_account"); fi
  if [ -n "$opt_time" ]; then options+=(--time "$opt_time"); fi
  if [ -n "$opt_cpus_per_task" ]; then options+=(--cpus-per-task "$opt_cpus_per_task"); fi
  # SIGTERM to the processes five minutes before the time is up; the log of one start follows that of the one before.
  options+=(--requeue --signal "TERM@${BERTGPT_GRACE_SECONDS:-300}" --open-mode append --output "$opt_log")
  run sbatch "${options[@]}" "$SCRIPTS/slurm.sbatch" "$ROOT" "$opt_venv" "$opt_max_restarts" "${train_args[@]}" ||
    die "$opt_name was not submitted, see sbatch's message above" 1
}

action_status() {
  need squeue "the tools of SLURM"
  run squeue --me --name "$opt_name" --format '%A %T %M %D %R'
}

action_logs() { run tail -n 100 -F "$opt_log"; }

action_stop() {
  local job
  need_job
  # Without this, the job would be queued again.
  run scontrol update "JobId=$job" Requeue=0 || die "job $job was not stopped" 1
  run scancel --signal TERM "$job" || die "job $job was not stopped" 1
}

action_delete() {
  local job
  need squeue "the tools of SLURM"
  job=$(find_job) || die "the jobs cannot be listed, see squeue's message above" 1
  if [ -n "$opt_dry_run" ]; then job=JOB; fi
  if [ -z "$job" ]; then
    say "no job $opt_name is queued or running: nothing to delete"
    return
  fi
  confirm "cancel job $job ($opt_name)"
  run scancel "$job"
}

main "$@"
