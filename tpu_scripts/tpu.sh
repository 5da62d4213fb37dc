# shellcheck shell=bash
# shellcheck disable=SC2154 # the variables of lib.sh
# The actions on TPU VMs, however they were asked for. A script that sources this defines
#   machine_state     prints MISSING or the state that Cloud TPU reports
#   machine_kind      prints ready, waiting, gone or stopped for a state
#   machine_create    asks for the machines
#   machine_delete    deletes them without asking
#   machine_ssh COMMAND, machine_scp FILE DESTINATION    on the worker(s) $worker of all slices

TPU_OPTIONS="name zone project accelerator-type runtime-version network service-account experiment workdir commit extras \
setup worker max-wait max-restarts"
TPU_SWITCHES="spot reserved delete dry-run yes"
UNREACHABLE_POLLS=${BERTGPT_UNREACHABLE_POLLS:-5} # polls in a row that may fail before machines are given up
HEALTHY_SECONDS=${BERTGPT_HEALTHY_SECONDS:-1800}  # a run that lived this long does not count as a failed start
worker=all

tpu_main() { # tpu_main "MORE OPTIONS" ACTION WORDS…
  local more=$1
  shift
  take_action "create copy install run start status logs stop delete train" "$@"
  shift
  parse_options "$TPU_OPTIONS $more" "$TPU_SWITCHES" "$@"
  check_name
  require zone
  need gcloud "https://cloud.google.com/sdk/docs/install"
  : "${opt_max_wait:=86400}" "${opt_max_restarts:=5}" "${opt_extras:=tpu,text,gcs}"
  check_number max-wait
  check_number max-restarts
  [ -z "$opt_num_slices" ] || check_number num-slices
  place=(--zone "$opt_zone")
  if [ -n "$opt_project" ]; then place+=(--project "$opt_project"); fi
  if [ "$action" != run ] && [ "$action" != start ] && [ "$action" != train ] && [ ${#fields[@]} -gt 0 ]; then
    die "$action takes no words after --"
  fi
  "action_$action"
}

# Sets `version`, by https://cloud.google.com/tpu/docs/runtimes
set_version() {
  require accelerator-type
  version=$opt_runtime_version
  [ -z "$version" ] || return 0
  case $opt_accelerator_type in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
    *) die "--accelerator-type $opt_accelerator_type: give --runtime-version too, of https://cloud.google.com/tpu/docs/runtimes" ;;
  esac
}

# What both ways of asking for machines take.
machine_options() {
  options=(--accelerator-type "$opt_accelerator_type")
  if [ -n "$opt_spot" ]; then options+=(--spot); fi
  if [ -n "$opt_reserved" ]; then options+=(--reserved); fi
  if [ -n "$opt_network" ]; then options+=(--network "$opt_network"); fi
  if [ -n "$opt_service_account" ]; then options+=(--service-account "$opt_service_account"); fi
  # The workers read and write gs:// with the service account of the machine.
  options+=(--scopes https://www.googleapis.com/auth/cloud-platform)
}

# describe COMMAND…: the state that a gcloud describe command prints, or MISSING; fails if it cannot be found out, with
# exit code 3 if it never will.
describe() {
  local errors state code=0
  errors=$(mktemp)
  state=$(query "$@" 2>"$errors") || code=$?
  if [ -n "$opt_dry_run" ]; then
    state=MISSING
  elif [ "$code" -ne 0 ]; then
    if grep -Eq 'NOT_FOUND|was not found' "$errors"; then
      state=MISSING code=0
    else
      cat "$errors" >&2
      code=1
      if is_permanent "$errors"; then code=3; fi
    fi
  fi
  rm -f "$errors"
  [ "$code" -eq 0 ] || return "$code"
  printf '%s\n' "$state"
}

# Whether an error of gcloud will be the same however often it is tried.
is_permanent() {
  grep -Eq 'PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|does not have permission|do not currently have an active account|unrecognized arguments|Invalid choice|argument --|is required' "$1"
}

# Goes on when the machines are ready: creates them, waits for them, or replaces them. Quota and lack of capacity pass, so
# they are tried again, with back-off, for --max-wait seconds.
ensure_machines() {
  local tries=0 began=$SECONDS state kind errors code
  while :; do
    if [ $((SECONDS - began)) -gt "$opt_max_wait" ]; then
      die "$opt_name in $opt_zone: not ready after $opt_max_wait s (last state: ${state:-unknown}); the same command goes on waiting" 75
    fi
    code=0
    state=$(machine_state) || code=$?
    if [ "$code" -ne 0 ]; then
      tries=$((tries + 1))
      if [ "$code" -eq 3 ] || [ "$tries" -ge 10 ]; then die "$opt_name: its state cannot be read, see gcloud's message above" 1; fi
      backoff "$tries"
      continue
    fi
    kind=$(machine_kind "$state")
    case $kind in
      ready) return ;;
      waiting)
        say "$opt_name is $state"
        sleep "$POLL_SECONDS"
        continue
        ;;
      stopped) die "$opt_name is $state: start it with gcloud, or delete it, then repeat the command" 1 ;;
      gone)
        say "$opt_name is $state: replaced"
        retry 5 machine_delete || die "$opt_name cannot be deleted" 1
        ;;
      missing) ;;
      *) die "$opt_name: unknown state $state" 1 ;;
    esac
    errors=$(mktemp) code=0
    { machine_create 2>&1 1>&4 | tee "$errors" >&2; } 4>&1 || code=$?
    [ -z "$opt_dry_run" ] || return 0
    if [ "$code" -eq 0 ]; then
      tries=0
    elif is_permanent "$errors"; then
      rm -f "$errors"
      die "$opt_name cannot be created: gcloud's message above names the reason"
    elif ! grep -q ALREADY_EXISTS "$errors"; then
      tries=$((tries + 1))
      backoff "$tries"
    fi
    rm -f "$errors"
  done
}

action_create() {
  set_version
  ensure_machines
}

action_copy() {
  find_commit
  local archive="bertgpt-${commit:0:12}.tar.gz" folder=${TMPDIR:-/tmp} code=0
  # A folder of this call: another may copy the same commit at the same moment.
  [ -n "$opt_dry_run" ] || folder=$(mktemp -d) || return
  # Only what is committed: no .venv, no runs, no data.
  run git -C "$ROOT" archive --format=tar.gz --output="$folder/$archive" "$commit" &&
    retry 3 machine_scp "$folder/$archive" "$archive" &&
    retry 3 machine_ssh "rm -rf bertgpt.new && mkdir bertgpt.new && tar -xzf $archive -C bertgpt.new && echo $commit >bertgpt.new/COMMIT && rm -rf bertgpt $archive && mv bertgpt.new bertgpt" ||
    code=$?
  [ -n "$opt_dry_run" ] || rm -rf "$folder"
  return "$code"
}

action_install() {
  if [ -n "$opt_setup" ]; then retry 3 machine_ssh "$opt_setup" || return; fi
  retry 3 machine_ssh "bertgpt/tpu_scripts/worker.sh install $(quote "$opt_extras")"
}

action_run() {
  [ ${#fields[@]} -gt 0 ] || die "run needs a command after a lone --"
  worker=${opt_worker:-all}
  machine_ssh "$(quote "${fields[@]}")"
}

action_start() {
  set_train_args
  check_workdir
  # The port that JAX's processes meet at. The default since JAX 0.8.1, 8482, is closed by the usual TPU firewall rules
  # (https://github.com/jax-ml/jax/issues/35905).
  retry 3 machine_ssh "JAX_COORDINATOR_PORT=8476 bertgpt/tpu_scripts/worker.sh start $(quote "${train_args[@]}")"
}

check_workdir() {
  [[ $opt_workdir == *://* || ($opt_workdir == /* && -n $opt_setup) ]] ||
    die "--workdir $opt_workdir: the disk of a TPU VM goes with it; give gs://BUCKET/…, or a folder that --setup mounts"
}

action_status() {
  local state
  state=$(machine_state) || die "$opt_name: its state cannot be read" 1
  if [ -n "$opt_dry_run" ]; then
    poll
    return
  fi
  echo "$opt_name: $state"
  [ "$(machine_kind "$state")" != ready ] || poll
}

# One line for every worker.
poll() { worker=all machine_ssh_quietly "bertgpt/tpu_scripts/worker.sh status"; }

# Follows the log of one worker until the run ends; a connection that breaks is made again.
action_logs() {
  local n=0 lines=100
  worker=${opt_worker:-0}
  check_worker
  while ! machine_ssh "BERTGPT_LOG_LINES=$lines bertgpt/tpu_scripts/worker.sh logs"; do
    n=$((n + 1)) lines=10
    [ "$n" -le 10 ] || die "the log of $opt_name cannot be read: 10 tries failed" 1
    [ "$(machine_kind "$(machine_state || echo UNKNOWN)")" != missing ] || die "$opt_name does not exist in $opt_zone" 1
    backoff "$n"
  done
}

check_worker() { [[ $worker =~ ^(all|[0-9]+)$ ]] || die "--worker $worker: must be a number or all"; }

action_stop() { retry 3 machine_ssh "bertgpt/tpu_scripts/worker.sh stop"; }

action_delete() {
  local state
  state=$(machine_state) || die "$opt_name: its state cannot be read" 1
  if [ "$state" = MISSING ] && [ -z "$opt_dry_run" ]; then
    say "$opt_name does not exist in $opt_zone: nothing to delete"
    return
  fi
  confirm "delete $opt_name in $opt_zone and the disks of its workers"
  retry 5 machine_delete
}

# Everything, until the run is finished: create, copy, install, start, watch; again after a preemption or a failure.
action_train() {
  local restarts=0 began outcome
  set_train_args
  check_workdir
  set_version
  [ -n "$opt_dry_run" ] || trap 'say "not watched any more; the run goes on, and the same command watches it again"; exit 130' INT
  if [ -n "$opt_dry_run" ]; then
    ensure_machines
    action_copy
    action_install
    action_start
    poll
    if [ -n "$opt_delete" ]; then machine_delete; fi
    return
  fi
  while :; do
    ensure_machines
    began=$SECONDS
    outcome=$(poll 2>/dev/null | sort -u) || true
    # A run that another call of this script has started is only watched.
    if [[ $outcome != *running* ]]; then
      if action_copy && action_install && action_start; then
        watch
      else
        outcome=unreachable
      fi
    else
      watch
    fi
    case $outcome in
      finished)
        say "$opt_experiment is finished: $opt_workdir"
        if [ -n "$opt_delete" ]; then
          retry 5 machine_delete
        else
          say "$opt_name is still there, and billed: $0 delete --name $opt_name --zone $opt_zone --yes"
        fi
        return
        ;;
      'failed 2')
        worker=all machine_ssh "BERTGPT_LOG_LINES=5 bertgpt/tpu_scripts/worker.sh logs" || true
        die "the experiment is refused, see the log above; $opt_name is still there, and billed"
        ;;
      gone | stopped) say "$opt_name: the run was $outcome before the end; it is resumed" ;;
      unreachable)
        say "$opt_name: workers cannot be reached; it is replaced"
        retry 5 machine_delete || die "$opt_name cannot be deleted" 1
        ;;
      *)
        say "$opt_name: $outcome"
        action_stop || true # of what the other workers still do
        ;;
    esac
    if [ "$outcome" != gone ]; then
      if [ $((SECONDS - began)) -ge "$HEALTHY_SECONDS" ]; then restarts=0; fi
      restarts=$((restarts + 1))
      if [ "$restarts" -gt "$opt_max_restarts" ]; then
        worker=0 machine_ssh "BERTGPT_LOG_LINES=20 bertgpt/tpu_scripts/worker.sh logs" || true
        die "given up after $opt_max_restarts restarts in a row ($outcome); $opt_name may still be there, and billed" 1
      fi
      backoff "$restarts"
    fi
  done
}

# Sets `outcome` once the run has ended: finished, stopped, failed CODE, lost, gone (preempted) or unreachable.
watch() {
  local states failures=0 partial=0 state
  while :; do
    sleep "$POLL_SECONDS"
    if states=$(poll 2>/dev/null); then
      failures=0
      states=$(printf '%s\n' "$states" | grep -E '^(idle|running|finished|stopped|lost|failed [0-9]+)$' | sort -u)
      outcome=$(printf '%s\n' "$states" | grep -m 1 finished) && return # the results lie in the work directory, for all
      outcome=$(printf '%s\n' "$states" | grep -m 1 '^failed 2$') && return
      # The worker that failed says more than those that ended because of it (3).
      outcome=$(printf '%s\n' "$states" | grep -v running | grep -m 1 -E '^(failed ([^3]|[0-9][0-9])|lost)' ||
        printf '%s\n' "$states" | grep -m 1 -v running) || true
      if [[ $states != *running* ]]; then
        outcome=${outcome:-lost}
        return
      fi
      # Some workers have ended, others run: they see it within a minute and end too, or are stopped.
      if [ -n "$outcome" ]; then partial=$((partial + 1)); else partial=0; fi
      if [ "$partial" -ge "$UNREACHABLE_POLLS" ]; then return; fi
    elif state=$(machine_state) && [ "$(machine_kind "$state")" != ready ]; then
      say "$opt_name is $state"
      outcome=gone
      return
    else
      failures=$((failures + 1))
      say "not every worker answers ($failures of $UNREACHABLE_POLLS)"
      outcome=unreachable
      if [ "$failures" -ge "$UNREACHABLE_POLLS" ]; then return; fi
    fi
  done
}
