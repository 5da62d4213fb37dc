#!/usr/bin/env bash
# Train on whatever cloud has room, with SkyPilot's managed jobs: sky.sh ACTION --name NAME …
#
# Actions, in the order of a run:
#   start      launch the run; SkyPilot launches it again after preemptions, and each launch resumes
#   status     the queue of managed jobs
#   logs       follow the log
#   stop       cancel the run; it is saved up to its last checkpoint. SkyPilot deletes the machines.
#   delete     the same; asks, or needs --yes
#
# Options:
#   --name NAME               of the managed job
#   --accelerator-type TYPE   as of sky: tpu-v5litepod-8:1, H100:8
#   --nodes N                 GPU machines (default 1)
#   --zone ZONE               of Google Cloud; default: wherever there is room
#   --experiment EXPERIMENT   what bertgpt train runs; fields of the experiment follow a lone --
#   --workdir DIR             folder of runs, gs://BUCKET/runs or s3://BUCKET/runs; for machines with one host
#   --extras EXTRAS           of bertgpt to install (default: tpu,text,gcs or, for GPUs, cuda,text,gcs,s3)
#   --spot                    spot capacity (default: on demand)
#   --dry-run                 print every command and run none
#   --yes                     do not ask
#
# Sources: skypilot.yaml; https://docs.skypilot.co/en/latest/reference/cli.html

set -uo pipefail
# shellcheck source=tpu_scripts/lib.sh
. "$(dirname "$0")/lib.sh"

main() {
  take_action "start status logs stop delete" "$@"
  shift
  parse_options "name accelerator-type nodes zone experiment workdir extras" "spot dry-run yes" "$@"
  check_name
  need sky "pip install 'skypilot[gcp]'"
  : "${opt_nodes:=1}"
  check_number nodes
  "action_$action"
}

action_start() {
  local options extras=cuda,text,gcs,s3 spot=--no-use-spot
  set_train_args
  require accelerator-type
  [[ $opt_workdir == *://* ]] || die "--workdir $opt_workdir: the disk of the machine goes with it; give a bucket, gs://… or s3://…"
  case $opt_accelerator_type in tpu-*) extras=tpu,text,gcs ;; esac
  if [ -n "$opt_spot" ]; then spot=--use-spot; fi
  options=(--name "$opt_name" --gpus "$opt_accelerator_type" --num-nodes "$opt_nodes" "$spot")
  if [ -n "$opt_zone" ]; then options+=(--infra "gcp/*/$opt_zone"); fi
  options+=(--env "EXPERIMENT=$opt_experiment" --env "WORKDIR=$opt_workdir" --env "EXTRAS=${opt_extras:-$extras}")
  options+=(--env "FIELDS=$(quote ${fields[@]+"${fields[@]}"})")
  cd "$ROOT" || exit # what `workdir: .` in the YAML means
  run sky jobs launch "${options[@]}" --detach-run --yes "$SCRIPTS/skypilot.yaml" ||
    die "$opt_name was not launched, see sky's message above" 1
}

action_status() { run sky jobs queue; }

# A connection that breaks is made again.
action_logs() {
  local n=0
  while ! run sky jobs logs --name "$opt_name" --follow; do
    n=$((n + 1))
    [ "$n" -le 10 ] || die "the log of $opt_name cannot be read: 10 tries failed" 1
    backoff "$n"
  done
}

action_stop() { run sky jobs cancel --name "$opt_name" --yes; }

action_delete() {
  confirm "cancel $opt_name and delete its machines"
  action_stop
}

main "$@"
