#!/bin/sh
# Restarts the replicas one after the other. Each one finishes what it accepted while the others answer.
# usage: rolling_restart.sh 8001 8002
set -eu
for port in "$@"; do
    systemctl restart "bertgpt@$port"
    tries=0
    until curl -fsS -o /dev/null --max-time 2 "http://127.0.0.1:$port/ready"; do
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || { echo "bertgpt@$port is not ready after 300 tries" >&2; exit 1; }
        sleep 1
    done
    sleep 3 # longer than fail_timeout in nginx.conf, after which nginx uses the replica again
done
