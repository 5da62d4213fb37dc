#!/usr/bin/env bash
# Train on TPU slices that are asked for through a queue: queued_resource.sh ACTION --name NAME --zone ZONE …
#
# The actions and options are those of tpu_vm.sh (see tpu_vm.sh --help), and one more:
#   --num-slices N            slices of this accelerator type (default 1), connected by the data-centre network; set
#                             --mesh.dcn N after the lone --
#
# A request waits in the queue for as long as --max-wait says; `create` or `train` with the same name goes on waiting.
# Preempted (SUSPENDED) and FAILED requests are deleted and asked for again.
#
# Sources: gcloud compute tpus queued-resources create|ssh|scp|describe|delete --help (Google Cloud SDK 528);
# https://cloud.google.com/tpu/docs/queued-resources, https://cloud.google.com/tpu/docs/multislice-introduction

set -uo pipefail
# shellcheck source=tpu_scripts/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=tpu_scripts/tpu.sh
. "$(dirname "$0")/tpu.sh"

machine_state() {
  describe gcloud compute tpus queued-resources describe "$opt_name" "${place[@]}" --format 'value(state.state)'
}

# The states: https://cloud.google.com/tpu/docs/queued-resources
machine_kind() {
  case $1 in
    MISSING) echo missing ;;
    ACTIVE) echo ready ;;
    CREATING | ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING | DELETING | SUSPENDING) echo waiting ;;
    SUSPENDED | FAILED) echo gone ;;
    *) echo unknown ;;
  esac
}

machine_create() {
  local options
  machine_options
  if [ "${opt_num_slices:-1}" -gt 1 ]; then
    options+=(--node-count "$opt_num_slices" --node-prefix "$opt_name")
  else
    options+=(--node-id "$opt_name")
  fi
  run gcloud compute tpus queued-resources create "$opt_name" "${place[@]}" --runtime-version "$version" \
    "${options[@]}" --quiet
}

# --force: with the machines that it has.
machine_delete() { run gcloud compute tpus queued-resources delete "$opt_name" "${place[@]}" --force --quiet; }

machine_ssh() {
  run gcloud compute tpus queued-resources ssh "$opt_name" "${place[@]}" --node "$(node)" --worker "$worker" \
    --command "$1" --quiet
}

machine_ssh_quietly() {
  query gcloud compute tpus queued-resources ssh "$opt_name" "${place[@]}" --node "$(node)" --worker "$worker" \
    --command "$1" --quiet
}

machine_scp() {
  run gcloud compute tpus queued-resources scp "$1" "$opt_name:$2" "${place[@]}" --node all --worker all --quiet
}

# One worker is one of the first slice.
node() { if [ "$worker" = all ]; then echo all; else echo 0; fi; }

tpu_main num-slices "$@"
