#!/usr/bin/env bash
# Submits a training run to a Ray cluster with `ray job submit`, after the cluster has grown to the
# CPUs and GPUs that it needs. Works for every cluster in this folder once its dashboard is
# forwarded to this machine (the header of each file says how).
#
#   export RAY_AUTH_MODE=token                 # the token itself: ~/.ray/auth_token, mode 0600
#   export RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265       # else `ray job` finds no cluster
#   cluster/submit.sh --cpus 32 --gpus 1 -- \
#       --config expression --num-env-runners 32 --num-learners 1 --num-gpus-per-learner 1 \
#       --output-dir /results/first
#
# --cpus: one for each env runner and each CPU learner. --gpus: one for each GPU learner.
# What stands behind the second -- goes to `python -m toolagent.run`, which runs on the head node:
# --output-dir is a folder there.
#
#   watch:   ray job logs --follow JOB         or http://127.0.0.1:8265
#   stop:    ray job stop JOB                  a checkpoint is written; continue with --resume
#   again:   cluster/submit.sh --cpus 32 --gpus 1 -- --resume /results/first
#
# RAY_API_SERVER_ADDRESS says where the dashboard is (default http://127.0.0.1:8265).
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
nodes=()
while [[ $# -gt 0 && "$1" != "--" ]]; do
  case "$1" in
    --cpus | --gpus | --wait-s) ;;
    --cpus=* | --gpus=* | --wait-s=*)
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      ;;
    *)
      echo "error: no option '$1' before the --; known: --cpus N, --gpus N, --wait-s X" >&2
      exit 2
      ;;
  esac
  if [[ ! "${2-}" =~ ^[0-9]{1,6}$ ]]; then
    echo "error: $1: expected a number, got '${2-}'" >&2
    exit 2
  fi
  nodes+=("$1" "$2")
  shift 2
done
if [[ $# -eq 0 ]]; then
  echo "error: expected $0 [--cpus N] [--gpus N] -- ARGUMENTS OF toolagent.run" >&2
  exit 2
fi
shift

# The job starts in a copy of this folder that Ray removes: relative results would go with it.
absolute=no
previous=""
for argument in "$@"; do
  case "$previous $argument" in
    "--output-dir /"* | "--resume /"*) absolute=yes ;;
  esac
  case "$argument" in
    "--output-dir=/"* | "--resume=/"*) absolute=yes ;;
  esac
  previous="$argument"
done
if [[ "$absolute" == no ]]; then
  echo "error: name --output-dir or --resume with an absolute path on the head node" >&2
  exit 2
fi

if ! command -v ray >/dev/null; then
  echo "error: there is no command 'ray' here; pip install 'ray[default]'" >&2
  exit 2
fi
# Out of that copy: a node that comes later may put it there anew, and the old one is gone.
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
exec ray job submit \
  --address "${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}" \
  --working-dir "$here" \
  -- python with_nodes.py --cwd / "${nodes[@]}" -- python -m toolagent.run "$@"
