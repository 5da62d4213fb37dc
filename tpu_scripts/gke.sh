#!/usr/bin/env bash
# Train on Kubernetes (GKE), with TPUs or GPUs: gke.sh ACTION --name NAME …
#
# Actions, in the order of a run:
#   image      build the image from a commit of this checkout and push it
#   queue      create the Kueue queue with a quota of chips (once per cluster)
#   render     print the YAML that start applies
#   start      submit the run; Kueue starts it when there is room, JobSet restarts it after failures and preemptions, and
#              each start resumes. A second start with the same name is refused while the first exists.
#   status     the state of the JobSet or TrainJob, and its pods
#   logs       follow the log of the first host (--worker N for another host of the first slice)
#   stop       end the run and its restarts; it saves first. It is the same as delete, for the results lie in --workdir.
#   delete     delete it; asks, or needs --yes
#
# Options:
#   --name NAME               of the JobSet, TrainJob or xpk workload
#   --accelerator-type TYPE   TPU as in bertgpt plan: v5e:4x4, v5p:4x4x8, v6e:16x16; GPU: nvidia-h100-80gb:8, with the
#                             number per host
#   --hosts N                 GPU hosts (default 1); TPU hosts follow from the topology
#   --chips-per-host N        of TPUs (default 4; smaller topologies have one host)
#   --num-slices N            TPU slices (default 1); set --mesh.dcn N after the lone --
#   --experiment EXPERIMENT   what bertgpt train runs; fields of the experiment follow a lone --
#   --workdir DIR             folder of runs: gs://BUCKET/runs for one host, /shared/runs for several
#   --volume-claim CLAIM      PersistentVolumeClaim that all hosts mount at /shared (ReadWriteMany, such as Filestore)
#   --image IMAGE             such as REGION-docker.pkg.dev/PROJECT/REPOSITORY/bertgpt:TAG
#   --kind KIND               jobset (default) or kubeflow: a TrainJob of Kubeflow Trainer's JAX runtime
#   --queue QUEUE             Kueue LocalQueue (default: multislice-queue, which xpk creates)
#   --namespace NAMESPACE     default: default
#   --quota N                 chips of the queue, for queue
#   --max-restarts N          default 100: preemptions count
#   --xpk                     start, status, logs and delete with xpk, on --cluster in --zone (and --project)
#   --commit, --extras        as of tpu_vm.sh, for image
#   --dry-run, --yes          as of tpu_vm.sh
#
# Sources: jobset.yaml, kubeflow.yaml, kueue.yaml; xpk 1.x: github.com/AI-Hypercomputer/xpk, src/xpk/parser/workload.py.

set -uo pipefail
# shellcheck source=tpu_scripts/lib.sh
. "$(dirname "$0")/lib.sh"

main() {
  take_action "image queue render start status logs stop delete" "$@"
  shift
  parse_options "name zone project cluster accelerator-type hosts chips-per-host num-slices experiment workdir image kind \
queue namespace volume-claim quota max-restarts commit extras worker" "xpk dry-run yes" "$@"
  : "${opt_kind:=jobset}" "${opt_queue:=multislice-queue}" "${opt_namespace:=default}" "${opt_max_restarts:=100}"
  : "${opt_num_slices:=1}" "${opt_hosts:=1}" "${opt_chips_per_host:=4}" "${opt_worker:=0}" "${opt_extras:=tpu,text,gcs}"
  local option
  for option in max-restarts num-slices hosts chips-per-host; do check_number "$option"; done
  [[ $opt_worker =~ ^[0-9]+$ ]] || die "--worker $opt_worker: must be a number"
  case $opt_kind in jobset) resource=jobset ;; kubeflow) resource=trainjob ;; *) die "--kind $opt_kind: must be jobset or kubeflow" ;; esac
  if [ -n "$opt_xpk" ]; then
    [ "$opt_kind" = jobset ] || die "--xpk makes JobSets: leave out --kind"
    require cluster zone
    place=(--cluster "$opt_cluster" --zone "$opt_zone")
    if [ -n "$opt_project" ]; then place+=(--project "$opt_project"); fi
  fi
  "action_$action"
}

kubectl_() { run kubectl --namespace "$opt_namespace" "$@"; }

# Sets what the templates need to know of the machines.
# The labels: https://cloud.google.com/kubernetes-engine/docs/how-to/tpus and …/how-to/gpus
set_machines() {
  require accelerator-type
  local kind=${opt_accelerator_type%%:*} size=${opt_accelerator_type#*:} label total=1 side
  annotations='{}'
  # A slice is a node pool; without this, the pods of two slices may be mixed.
  [ "$opt_num_slices" -eq 1 ] || annotations='{alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool}'
  [[ $opt_accelerator_type == ?*:?* ]] || die "--accelerator-type $opt_accelerator_type: must be like v5e:4x4 or nvidia-h100-80gb:8"
  case $kind in
    v4) label=tpu-v4-podslice ;;
    v5e) label=tpu-v5-lite-podslice ;;
    v5p) label=tpu-v5p-slice ;;
    v6e) label=tpu-v6e-slice ;;
    *) label='' ;;
  esac
  if [ -n "$label" ]; then
    [[ $size =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || die "--accelerator-type $opt_accelerator_type: no topology after the colon, such as v5e:4x4"
    for side in ${size//x/ }; do total=$((total * side)); done
    chips=$opt_chips_per_host
    if [ "$total" -lt "$chips" ]; then chips=$total; fi
    [ $((total % chips)) -eq 0 ] || die "--accelerator-type $opt_accelerator_type: $total chips are no multiple of --chips-per-host $chips"
    hosts=$((total / chips))
    device=google.com/tpu
    selector="{\"cloud.google.com/gke-tpu-accelerator\": $label, \"cloud.google.com/gke-tpu-topology\": $size}"
    environment='[]' # GKE tells the hosts of a slice about one another, and JobSet the slices
  else
    [[ $size =~ ^[1-9][0-9]*$ ]] || die "--accelerator-type $opt_accelerator_type: no number of GPUs per host after the colon"
    [ "$opt_num_slices" -eq 1 ] || die "--num-slices is for TPUs; give --hosts"
    chips=$size
    hosts=$opt_hosts
    device=nvidia.com/gpu
    selector="{\"cloud.google.com/gke-accelerator\": $kind}"
    environment="[{name: JAX_COORDINATOR_ADDRESS, value: \"$opt_name-slice-0-0.$opt_name:8476\"}, \
{name: JAX_NUM_PROCESSES, value: \"$hosts\"}, {name: JAX_PROCESS_ID, valueFrom: {fieldRef: {fieldPath: \
\"metadata.annotations['batch.kubernetes.io/job-completion-index']\"}}}]"
  fi
}

# Prints the YAML of a run.
manifest() {
  local mounts='{name: shared-memory, mountPath: /dev/shm}' volumes='{name: shared-memory, emptyDir: {medium: Memory}}'
  if [ -n "$opt_volume_claim" ]; then
    mounts+=', {name: shared, mountPath: /shared}'
    volumes+=", {name: shared, persistentVolumeClaim: {claimName: $opt_volume_claim}}"
  fi
  render "$SCRIPTS/$opt_kind.yaml" NAME "$opt_name" NAMESPACE "$opt_namespace" QUEUE "$opt_queue" IMAGE "$opt_image" \
    HOSTS "$hosts" SLICES "$opt_num_slices" CHIPS "$chips" RESOURCE "$device" SELECTOR "$selector" ENV "$environment" \
    ANNOTATIONS "$annotations" MOUNTS "[$mounts]" VOLUMES "[$volumes]" MAX_RESTARTS "$opt_max_restarts" GRACE "${BERTGPT_GRACE_SECONDS:-300}" \
    ARGS "$(json_list "${train_args[@]}")" # last: its words are taken as they are
}

prepare() {
  check_name
  require image
  set_train_args
  [[ $opt_workdir == *://* || ($opt_workdir == /shared/* && -n $opt_volume_claim) ]] ||
    die "--workdir $opt_workdir: the disk of a pod goes with it; give gs://BUCKET/…, or /shared/… with --volume-claim"
  set_machines
  if [ -n "$opt_volume_claim" ] && [ -n "$opt_xpk" ]; then die "--volume-claim: xpk has its own storages; leave out --xpk"; fi
  if [ "$opt_kind" = kubeflow ] && [ "$opt_num_slices" -gt 1 ]; then die "--num-slices: a TrainJob has one slice"; fi
}

action_image() {
  local builder=(docker build)
  require image
  find_commit
  need docker "https://docs.docker.com/engine/install"
  builder+=(--tag "$opt_image" --file tpu_scripts/Dockerfile --build-arg "EXTRAS=$opt_extras" -)
  if [ -n "$opt_dry_run" ]; then
    printf '%s | %s\n' "$(quote git -C "$ROOT" archive "$commit")" "$(quote "${builder[@]}")"
  else
    git -C "$ROOT" archive "$commit" | run "${builder[@]}" || die "the image was not built" 1
  fi
  retry 3 run docker push "$opt_image"
}

action_queue() {
  require quota
  check_number quota
  set_machines
  need kubectl "https://kubernetes.io/docs/tasks/tools"
  local yaml
  yaml=$(render "$SCRIPTS/kueue.yaml" QUEUE "$opt_queue" NAMESPACE "$opt_namespace" SELECTOR "$selector" \
    RESOURCE "$device" QUOTA "$opt_quota") || exit
  submit apply "$yaml" || die "the queue was not created, see kubectl's message above" 1
}

# submit apply|create YAML. With --dry-run, the YAML is part of what would be run.
submit() {
  if [ -n "$opt_dry_run" ]; then
    printf "%s <<'YAML'\n%s\nYAML\n" "$(quote kubectl --namespace "$opt_namespace" "$1" --filename -)" "$2"
  else
    printf '%s\n' "$2" | kubectl_ "$1" --filename -
  fi
}

action_render() {
  prepare
  manifest
}

action_start() {
  local yaml
  prepare
  if [ -n "$opt_xpk" ]; then
    start_with_xpk
    return
  fi
  need kubectl "https://kubernetes.io/docs/tasks/tools"
  yaml=$(manifest) || exit
  submit create "$yaml" || # which refuses a name that exists
    die "$opt_name was not submitted, see kubectl's message above" 1
  [ -n "$opt_dry_run" ] || say "watch it: $0 status --name $opt_name; $0 logs --name $opt_name"
}

start_with_xpk() {
  local device=(--tpu-type "$(xpk_type)" --num-slices "$opt_num_slices")
  need xpk "pip install xpk"
  # worker.sh's code 75 and bertgpt's faults restart it; 2, a user error, does not.
  run xpk workload create --workload "$opt_name" "${place[@]}" "${device[@]}" --docker-image "$opt_image" \
    --max-restarts "$opt_max_restarts" --restart-on-exit-codes 1,3,70,75 \
    --termination-grace-period-seconds "${BERTGPT_GRACE_SECONDS:-300}" \
    --command "/bertgpt/tpu_scripts/worker.sh run $(quote "${train_args[@]}")"
}

# xpk's name of a slice: v5e:4x4 is v5litepod-16; v4 and v5p count cores, two on a chip.
xpk_type() {
  local kind=${opt_accelerator_type%%:*} total=$((hosts * chips))
  case $kind in
    v5e) echo "v5litepod-$total" ;;
    v6e) echo "v6e-$total" ;;
    v4 | v5p) echo "$kind-$((2 * total))" ;;
    *) die "--xpk: for TPUs; without --xpk GPUs work too" ;;
  esac
}

action_status() {
  check_name
  if [ -n "$opt_xpk" ]; then
    need xpk "pip install xpk"
    run xpk workload list "${place[@]}" --filter-by-job "$opt_name"
    return
  fi
  need kubectl "https://kubernetes.io/docs/tasks/tools"
  kubectl_ get "$resource" "$opt_name" || return
  kubectl_ get pods --selector "jobset.sigs.k8s.io/jobset-name=$opt_name" --output wide
}

# Follows the log of one host; a connection that breaks is made again, also after a restart of the JobSet.
action_logs() {
  local n=0 job=slice tail=100
  check_name
  case $opt_kind in kubeflow) job=node ;; esac
  if [ -n "$opt_xpk" ]; then job=slice-job; fi
  need kubectl "https://kubernetes.io/docs/tasks/tools"
  while :; do
    if kubectl_ logs --follow --tail "$tail" --selector \
      "jobset.sigs.k8s.io/jobset-name=$opt_name,jobset.sigs.k8s.io/replicatedjob-name=$job,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=$opt_worker"; then
      return
    fi
    n=$((n + 1)) tail=10
    [ "$n" -le 10 ] || die "the log of $opt_name cannot be read: 10 tries failed" 1
    backoff "$n"
  done
}

action_stop() { action_delete; }

action_delete() {
  check_name
  confirm "$action $opt_name; its results stay in the work directory"
  if [ -n "$opt_xpk" ]; then
    need xpk "pip install xpk"
    run xpk workload delete "${place[@]}" --workload "$opt_name" --force
    return
  fi
  need kubectl "https://kubernetes.io/docs/tasks/tools"
  kubectl_ delete "$resource" "$opt_name" --ignore-not-found || return
  if [ "$opt_kind" = kubeflow ]; then kubectl_ delete trainingruntime "$opt_name" --ignore-not-found; fi
}

main "$@"
