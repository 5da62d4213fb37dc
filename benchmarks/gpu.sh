#!/bin/sh
# Everything that one GPU measures, in at most 9 minutes: sh benchmarks/gpu.sh [FOLDER]
# Attention and gradients against references, training steps beside transformers, decoding, where a step spends its time.
# Needs jax for the GPU, flax, optax and jaxtyping; torch and transformers for the peer. A part that fails or is slow does
# not cost the others. Two contenders set up at the same time, because compiling takes most of the minutes.
set -u
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
mkdir -p "$out"
export XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
python=${PYTHON:-python3}
end=$(($(date +%s) + ${SECONDS_IN_ALL:-540}))

part() { # seconds at most, then the command
  limit=$1
  shift
  left=$((end - $(date +%s)))
  [ "$left" -gt 20 ] || { echo "no time left for: $*"; return; }
  [ "$left" -lt "$limit" ] && limit=$left
  echo "== $* (at most $limit s; $left s left)"
  timeout "$limit" "$@" 2>&1 | grep -v '^{' || true
}

measure() { # seconds, kind, case, contenders
  limit=$1 kind=$2 case=$3
  shift 3
  part "$limit" "$python" -m benchmarks "$kind" --large --case "$case" --repeats 3 --together --out "$out" --only "$@"
}

plain='bertgpt bfloat16'
lean='bertgpt bfloat16, no attention dropout'
peer='transformers bfloat16'
measure 110 train_step 0 "$lean" "$peer, compiled, no attention dropout"
measure 120 train_step 1 "$lean" "$peer, compiled, no attention dropout"
measure 90 train_step 2 'bertgpt bfloat16, no dropout' "$peer, compiled, no dropout"
measure 80 decode 0 "$plain" 'transformers bfloat16, static cache'
measure 80 decode 1 "$plain" 'transformers bfloat16, static cache'
part 90 "$python" -m benchmarks.profile bert_base --batch 96 --attention_dropout 0 --out "$out/profile-bert_base.json"
measure 110 train_step 3 "$plain" "$peer, compiled"
part 120 "$python" -m benchmarks.attention --lengths 64 192 320 512 2048 --repeat 5 --out "$out/attention.json"
