#!/usr/bin/env bash
# What runs on every worker: worker.sh ACTION …; the other scripts call it over ssh, in a container or in a SLURM task.
#
#   install EXTRAS     make the virtual environment and install this checkout with these extras, such as tpu,text
#   run ARGS           bertgpt train ARGS, in the foreground
#   start ARGS         the same in the background; does nothing if a run is going on
#   status             one line: idle, running, finished, stopped, failed CODE, or lost (the process is gone)
#   logs               the log, followed until the run ends
#   stop               SIGTERM, on which the run saves; SIGKILL after BERTGPT_GRACE_SECONDS (300)
#
# Exit codes of run: 0 finished (results.json of every run is written), 75 stopped before the end with everything saved,
# else that of bertgpt train: 2 user error, 3 unfinished for another reason, such as a process that is gone, 70 fault.
# `bertgpt train` itself exits with 0 too when a signal has stopped it, which schedulers would take for the end of the work.
#
# Who the other processes are, bertgpt finds out itself (docs/how-to/hosts.md): from Cloud TPU, SLURM, Kubernetes, MPI, or
# from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

set -uo pipefail
STATE=${BERTGPT_STATE:-$HOME/.bertgpt}
VENV=${BERTGPT_VENV:-$HOME/.bertgpt/venv}
HERE=$(cd "$(dirname "$0")/.." && pwd)
UNFINISHED=75 # EX_TEMPFAIL of sysexits.h
if [ -x "$VENV/bin/bertgpt" ]; then PATH=$VENV/bin:$PATH; fi

say() { printf 'worker.sh: %s\n' "$*" >&2; }

install() {
  # bertgpt needs Python 3.11, and the image of most TPU runtimes (Ubuntu 22.04) has 3.10. uv finds or fetches a newer one.
  PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv || return
  uv venv --quiet --allow-existing --python '>=3.11,<3.14' "$VENV" || return
  # Editable: code that is copied later needs no second installation.
  uv pip install --quiet --python "$VENV" --editable "$HERE${1:+[$1]}"
}

# Whether every run that these arguments name has its results.
finished() {
  "$(dirname "$(command -v bertgpt)")/python" - "$@" <<'PYTHON'
import sys
from pathlib import Path

from bertgpt.cli import train
from bertgpt.cli.experiments import load_experiments, with_fields
from bertgpt.cli.options import parse_options
from bertgpt.io.paths import url_of
from bertgpt.io.remote import RemoteDirectory

options = parse_options(train.COMMAND, sys.argv[1:], "bertgpt train")
loaded = [item for name in options.experiments for item in load_experiments(name)]
for experiment in with_fields(loaded, options.fields):
    run = f"{options.workdir}/{experiment.name}"
    if url_of(run) is None:
        found = Path(run, "results.json").exists()
    else:
        found = RemoteDirectory(run).read("results.json") is not None
    if not found:
        sys.exit(f"worker.sh: no results yet: {run}/results.json")
PYTHON
}

run() {
  local code=0 signalled='' child
  command -v bertgpt >/dev/null || {
    say "bertgpt is not installed: worker.sh install EXTRAS"
    return 2
  }
  bertgpt train "$@" &
  child=$!
  trap 'signalled=1; kill -TERM "$child" 2>/dev/null' TERM INT HUP
  while :; do # wait returns early at a signal
    code=0
    wait "$child" || code=$?
    kill -0 "$child" 2>/dev/null || break
  done
  trap - TERM INT HUP
  if [ "$code" -eq 0 ] && ! finished "$@"; then
    say "stopped before the end; the same command resumes"
    return "$UNFINISHED"
  fi
  # 130: stopped by Ctrl-C, saved. 143: the signal came before bertgpt could handle it.
  if [ -n "$signalled" ] && { [ "$code" -eq 130 ] || [ "$code" -eq 143 ]; }; then return "$UNFINISHED"; fi
  return "$code"
}

# The process of the run, if it is alive: a number that another program has now is not.
running() {
  local pid
  pid=$(cat "$STATE/pid" 2>/dev/null) && kill -0 "$pid" 2>/dev/null &&
    tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q 'worker\.sh'
}

start() {
  if running; then
    say "a run is going on"
    return 0
  fi
  mkdir -p "$STATE" && rm -f "$STATE/code" || return
  # A session of its own: it outlives the ssh connection, and `stop` can end all of it.
  BERTGPT_STATE=$STATE setsid nohup "$0" supervise "$@" >>"$STATE/train.log" 2>&1 </dev/null &
  echo $! >"$STATE/pid"
}

supervise() {
  local code=0
  run "$@" || code=$?
  echo "$code" >"$STATE/code.partial" && mv "$STATE/code.partial" "$STATE/code"
}

status() {
  if running; then
    echo "running"
  elif [ -e "$STATE/code" ]; then
    case $(cat "$STATE/code") in
      0) echo "finished" ;;
      "$UNFINISHED") echo "stopped" ;;
      *) echo "failed $(cat "$STATE/code")" ;;
    esac
  elif [ -e "$STATE/pid" ]; then
    echo "lost"
  else
    echo "idle"
  fi
}

logs() {
  local pid
  [ -e "$STATE/train.log" ] || {
    say "no log yet"
    return 1
  }
  if running; then
    pid=$(cat "$STATE/pid")
    tail -n "${BERTGPT_LOG_LINES:-100}" -F --pid="$pid" "$STATE/train.log"
  else
    tail -n "${BERTGPT_LOG_LINES:-100}" "$STATE/train.log"
  fi
}

stop() {
  local pid seconds=0 grace=${BERTGPT_GRACE_SECONDS:-300}
  running || return 0
  pid=$(cat "$STATE/pid")
  kill -TERM "$pid"
  while running; do
    if [ "$seconds" -ge "$grace" ]; then
      say "still running after $grace s: killed; the last checkpoint is kept"
      kill -KILL -- "-$pid" 2>/dev/null || kill -KILL "$pid"
      echo "$UNFINISHED" >"$STATE/code"
      return 0
    fi
    sleep 1
    seconds=$((seconds + 1))
  done
}

action=${1:-}
[ $# -eq 0 ] || shift
case $action in
  install | run | start | supervise | status | logs | stop) "$action" "$@" ;;
  *)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    case $action in --help | -h) exit 0 ;; *) exit 2 ;; esac
    ;;
esac
