#!/usr/bin/env bash
# Train on a Cloud TPU VM (one slice) that is created at once: tpu_vm.sh ACTION --name NAME --zone ZONE …
#
# Actions, in the order of a run:
#   train      all of it: create, copy, install, start, then watch; after a preemption or failure again, until the run is
#              finished. The same command resumes, also after this computer was off. Needs --accelerator-type,
#              --experiment, --workdir.
#   create     create the TPU VM and wait until it is ready; quota and capacity errors are tried again, with back-off
#   copy       send the files of a commit of this checkout to all workers
#   install    make the virtual environment on all workers
#   start      start bertgpt train on all workers, in the background
#   status     the state of the machine and of the run on each worker
#   logs       follow the log of a worker
#   stop       stop the run on all workers; it saves first
#   run        run the command after -- on all workers
#   delete     delete the TPU VM; asks, or needs --yes
#
# Options:
#   --name NAME               of the TPU VM
#   --zone ZONE               such as us-west4-a
#   --accelerator-type TYPE   such as v5litepod-16, v6e-64, v5p-128 (gcloud compute tpus accelerator-types list)
#   --experiment EXPERIMENT   what bertgpt train runs; fields of the experiment follow a lone --
#   --workdir DIR             folder of runs: gs://BUCKET/runs for one host, a folder that --setup mounts for several
#   --project PROJECT         default: that of gcloud
#   --runtime-version V       default: by the accelerator type
#   --spot, --reserved        kind of capacity
#   --network, --service-account    as of gcloud
#   --commit COMMIT           what to copy; default: HEAD, if nothing is uncommitted
#   --extras EXTRAS           of bertgpt to install (default: tpu,text,gcs)
#   --setup COMMAND           run on every worker before the installation, for example to mount a file system
#   --worker N                for logs (default 0) and run (default all)
#   --max-wait SECONDS        how long to wait for the machine (default 86400)
#   --max-restarts N          give up after N failed starts in a row (default 5); preemptions do not count
#   --delete                  for train: delete the machine when the run is finished
#   --dry-run                 print every command and run none
#   --yes                     do not ask
#
# Exit codes: 0 done, 1 given up, 2 wrong arguments or a refused experiment, 75 not ready in time.
# Sources: gcloud compute tpus tpu-vm create|ssh|scp|describe|delete --help (Google Cloud SDK 528);
# https://cloud.google.com/tpu/docs/managing-tpus-tpu-vm

set -uo pipefail
# shellcheck source=tpu_scripts/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=tpu_scripts/tpu.sh
. "$(dirname "$0")/tpu.sh"

machine_state() { describe gcloud compute tpus tpu-vm describe "$opt_name" "${place[@]}" --format 'value(state)'; }

# The states: https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes#State
machine_kind() {
  case $1 in
    MISSING) echo missing ;;
    READY) echo ready ;;
    CREATING | STARTING | RESTARTING | REIMAGING | REPAIRING | DELETING | STOPPING | UNKNOWN) echo waiting ;;
    PREEMPTED | TERMINATED) echo gone ;;
    STOPPED | HIDING | HIDDEN | UNHIDING) echo stopped ;;
    *) echo unknown ;;
  esac
}

machine_create() {
  local options
  machine_options
  run gcloud compute tpus tpu-vm create "$opt_name" "${place[@]}" --version "$version" "${options[@]}" --quiet
}

machine_delete() { run gcloud compute tpus tpu-vm delete "$opt_name" "${place[@]}" --quiet; }

machine_ssh() { run gcloud compute tpus tpu-vm ssh "$opt_name" "${place[@]}" --worker "$worker" --command "$1" --quiet; }

machine_ssh_quietly() {
  query gcloud compute tpus tpu-vm ssh "$opt_name" "${place[@]}" --worker "$worker" --command "$1" --quiet
}

machine_scp() { run gcloud compute tpus tpu-vm scp "$1" "$opt_name:$2" "${place[@]}" --worker all --quiet; }

tpu_main "" "$@"
