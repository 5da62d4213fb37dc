# shellcheck shell=bash
# What all scripts of this folder share: messages, options, dry runs, retries, quoting and templates.
# It is sourced, and works with bash 3.2 (macOS) and later.
# shellcheck disable=SC2034 # variables that the scripts use which source this

PROG=${0##*/}
SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$SCRIPTS")

# Seconds between polls, and before the first and between later repetitions of what failed. Tests set them to 0.
POLL_SECONDS=${BERTGPT_POLL_SECONDS:-60}
BACKOFF_SECONDS=${BERTGPT_BACKOFF_SECONDS:-30}
BACKOFF_MAX_SECONDS=${BERTGPT_BACKOFF_MAX_SECONDS:-600}

exec 3>&1 # where dry runs print, also from inside $(…)

# Every option of every script; parse_options sets those that a script has.
opt_name='' opt_zone='' opt_project='' opt_accelerator_type='' opt_experiment='' opt_workdir='' opt_commit=''
opt_runtime_version='' opt_num_slices='' opt_network='' opt_service_account='' opt_extras='' opt_worker='' opt_max_wait=''
opt_max_restarts='' opt_hosts='' opt_chips_per_host='' opt_image='' opt_queue='' opt_namespace='' opt_kind='' opt_cluster=''
opt_quota='' opt_partition='' opt_nodes='' opt_time='' opt_account='' opt_cpus_per_task='' opt_venv='' opt_log='' opt_setup='' opt_volume_claim=''
opt_dry_run='' opt_yes='' opt_spot='' opt_reserved='' opt_delete='' opt_xpk=''
action='' # the first word of every call
fields=() train_args=() commit='' version=''

say() { printf '%s: %s\n' "$PROG" "$*" >&2; }

# die MESSAGE [EXIT_CODE]
die() {
  say "$1"
  exit "${2:-2}"
}

# need TOOL HOW_TO_GET_IT
need() {
  [ -n "$opt_dry_run" ] || command -v "$1" >/dev/null 2>&1 || die "$1 is not installed or not on PATH: $2"
}

# The text after the first line of the calling script, up to its first empty line.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

# take_action "ACTIONS" WORDS…: sets `action` to the first word; without one, or asked for help, shows the usage and exits.
take_action() {
  action=${2:-}
  case $action in
    '') usage && exit 2 ;;
    -h | --help) usage && exit 0 ;;
  esac
  [[ " $1 " == *" $action "* ]] || die "no action '$action'; there are $1"
}

# parse_options "OPTIONS WITH A VALUE" "SWITCHES" WORDS…
# Sets opt_NAME (with _ for -; empty if not given), and the array `fields` to what follows `--`.
parse_options() {
  local valued=" $1 " switches=" $2 " word name variable
  shift 2
  for name in $valued $switches; do printf -v "opt_${name//-/_}" '%s' ''; done
  fields=()
  while [ $# -gt 0 ]; do
    word=$1
    shift
    case $word in
      --) fields=("$@") && break ;;
      -h | --help) usage && exit 0 ;;
      --*) ;;
      *) die "unexpected argument '$word'; options begin with --, and fields of the experiment follow a lone --" ;;
    esac
    name=${word#--}
    name=${name%%=*}
    name=${name//_/-}
    variable=opt_${name//-/_}
    if [[ $switches == *" $name "* ]]; then
      [[ $word != *=* ]] || die "--$name takes no value"
      printf -v "$variable" 1
    elif [[ $valued == *" $name "* ]]; then
      if [[ $word == *=* ]]; then
        printf -v "$variable" '%s' "${word#*=}"
      else
        [ $# -gt 0 ] || die "--$name needs a value"
        printf -v "$variable" '%s' "$1"
        shift
      fi
      [ -n "${!variable}" ] || die "--$name needs a value"
    else
      die "no option --$name; there are$(printf '%s' "$valued$switches" | sed 's/ \{1,\}\([a-z]\)/ --\1/g')and --help; fields of the experiment follow a lone --"
    fi
  done
}

# require OPTION…: dies unless all of them were given.
require() {
  local name variable
  for name in "$@"; do
    variable=opt_${name//-/_}
    [ -n "${!variable}" ] || die "$action needs --$name"
  done
}

# What bertgpt train is called with: the experiment, the folder of runs, and fields. Sets the array `train_args`.
set_train_args() {
  local word
  require experiment workdir
  for word in "$opt_experiment" "$opt_workdir" ${fields[@]+"${fields[@]}"}; do
    [[ $word != *[[:cntrl:]]* ]] || die "line breaks and control characters cannot be passed: $(printf '%q' "$word")"
    case $word in
      --stop_after | --stop_after=*) die "--stop_after ends a run early, so it would be restarted for ever; leave it out" ;;
      --workdir | --workdir=*) die "give --workdir before the lone --" ;;
    esac
  done
  train_args=("$opt_experiment" --workdir "$opt_workdir" ${fields[@]+"${fields[@]}"})
}

# A name that is valid for TPUs, Kubernetes and SLURM alike.
check_name() {
  require name
  [[ $opt_name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "--name '$opt_name': use at most 40 lower-case letters, digits and '-', beginning with a letter"
}

check_number() { # check_number OPTION
  local variable=opt_${1//-/_}
  [[ ${!variable} =~ ^[1-9][0-9]*$ ]] || die "--$1 ${!variable}: must be a positive whole number"
}

# The words as a shell would have to read them.
quote() {
  local word text=
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      text+=" $word"
    else
      text+=" '${word//\'/\'\\\'\'}'"
    fi
  done
  printf '%s' "${text# }"
}

# The words as a JSON list, which is YAML too.
json_list() {
  local word text=
  for word in "$@"; do text+=", $(json_string "$word")"; done
  printf '[%s]' "${text#, }"
}

json_string() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "$text"
}

# run COMMAND…: shows the command and runs it; with --dry-run, prints it and does nothing.
run() {
  if [ -n "$opt_dry_run" ]; then
    printf '%s\n' "$(quote "$@")" >&3
  else
    printf '+ %s\n' "$(quote "$@")" >&2
    "$@"
  fi
}

# query COMMAND…: as run, but not shown, for it is called again and again.
query() {
  if [ -n "$opt_dry_run" ]; then run "$@"; else "$@"; fi
}

# backoff N: waits before repetition N (1, 2, …), twice as long each time.
backoff() {
  local seconds=$BACKOFF_SECONDS n=$1
  while [ "$n" -gt 1 ] && [ "$seconds" -lt "$BACKOFF_MAX_SECONDS" ]; do
    seconds=$((seconds * 2))
    n=$((n - 1))
  done
  [ "$seconds" -le "$BACKOFF_MAX_SECONDS" ] || seconds=$BACKOFF_MAX_SECONDS
  [ "$seconds" -eq 0 ] || say "next try in $seconds s"
  sleep "$seconds"
}

# retry TRIES COMMAND…: repeats a command that may be repeated; returns the last exit code.
retry() {
  local tries=$1 n=1 code
  shift
  while :; do
    code=0
    "$@" || code=$?
    if [ "$code" -eq 0 ] || [ "$n" -ge "$tries" ]; then return "$code"; fi
    say "failed with exit code $code (try $n of $tries): $1"
    backoff "$n"
    n=$((n + 1))
  done
}

# confirm WHAT: goes on with --yes or if a person at a terminal agrees.
confirm() {
  local answer=
  if [ -n "$opt_yes" ] || [ -n "$opt_dry_run" ]; then return; fi
  [ -t 0 ] || die "$1: give --yes to confirm"
  read -r -p "$1? [y/N] " answer
  case $answer in
    y | Y | yes) ;;
    *) die "not confirmed" 1 ;;
  esac
}

# shellcheck disable=SC2016 # placeholders are not variables
# render TEMPLATE KEY VALUE…: prints the file with each ${KEY} replaced, in this order; every placeholder needs a value.
render() {
  local file=$1 text key
  text=$(cat "$file") || die "$file: cannot be read"
  shift
  for key in $(grep -o '\${[A-Z_]*}' "$file" | tr -d '${}' | sort -u); do
    [[ " $* " == *" $key "* ]] || die "$file: no value for \${$key}" 70
  done
  while [ $# -gt 0 ]; do
    text=${text//"\${$1}"/"$2"}
    shift 2
  done
  printf '%s\n' "$text"
}

# The commit that is sent. Uncommitted changes would silently stay behind, so they are refused unless --commit is given.
find_commit() {
  need git "https://git-scm.com"
  if [ -z "$opt_commit" ] && [ -n "$(git -C "$ROOT" status --porcelain --untracked-files=no 2>/dev/null)" ]; then
    die "$ROOT has uncommitted changes: commit them, or send the last commit with --commit HEAD"
  fi
  commit=$(git -C "$ROOT" rev-parse --quiet --verify "${opt_commit:-HEAD}^{commit}") ||
    die "$ROOT: no commit ${opt_commit:-HEAD}"
}
