#!/usr/bin/env bash
# One training run on Slurm: a node with a GPU that learns, and CPU nodes whose env runners play.
# It is a heterogeneous job; both parts begin and end together.
#
#   python3.11 -m venv ~/toolagent-venv && ~/toolagent-venv/bin/pip install .    # on a shared disk
#   sbatch cluster/slurm.sh --config expression --output-dir "$PWD/runs/first"
#   squeue --me                                     # waiting, or on which nodes
#   tail -f toolagent-JOB.out                       # watch
#   ssh -L 8265:127.0.0.1:8265 NODE                 # the dashboard, with the token in the job's folder
#   scancel --batch --signal=TERM JOB               # stop: a checkpoint is written
#   sbatch cluster/slurm.sh --resume "$PWD/runs/first"    # continue, also after the time limit
#
# What stands behind slurm.sh goes to `python -m toolagent.run`, which runs on the first node, with
# one env runner a CPU of the second part and one learner on the GPU; later flags win. The checkout,
# the venv (TOOLAGENT_VENV) and --output-dir are on a disk that all nodes share. If the first node
# has several addresses, TOOLAGENT_HEAD_IP says which one the others reach. Nothing is left running
# when the job ends, so nothing idles.
#
# Without a GPU: delete the line with --gpus-per-node below.
#
# Security: the token is in a file of mode 0600 on the shared disk and goes with the job. It crosses
# the cluster's network in plain text. The dashboard listens on the first node's loopback.
#SBATCH --job-name=toolagent
#SBATCH --output=toolagent-%j.out
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=4 --mem=16G --exclusive
#SBATCH --gpus-per-node=1
#SBATCH hetjob
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=16 --mem=32G --exclusive
set -euo pipefail

# shellcheck disable=SC1091
. "${TOOLAGENT_VENV:-$HOME/toolagent-venv}/bin/activate"
here="$SLURM_SUBMIT_DIR/cluster"
runner_nodes="$SLURM_JOB_NUM_NODES_HET_GROUP_1"
cpus="$SLURM_CPUS_PER_TASK_HET_GROUP_1"
runners=$((runner_nodes * cpus))
gpus=0
if [[ -n "${CUDA_VISIBLE_DEVICES:-}" ]]; then
  gpus=1
fi

# A token for this job alone; srun passes the environment, which names the file, to all nodes.
umask 077
private="$(mktemp -d "$SLURM_SUBMIT_DIR/.toolagent-$SLURM_JOB_ID.XXXXXX")"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$private/auth_token"
python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH"
umask 022

# shellcheck disable=SC2329  # called by the trap
finish() {
  ray stop >/dev/null 2>&1 || true
  rm -rf "$private"
}
trap finish EXIT

address="${TOOLAGENT_HEAD_IP:-$(hostname --all-ip-addresses | cut -d ' ' -f 1)}:6379"
export RAY_ADDRESS="$address"
# No CPU on the head: env runners, which ask for one each, are on the other nodes.
ray start --head --node-ip-address="${address%:*}" --port=6379 --dashboard-host=127.0.0.1 \
  --num-cpus=0 --num-gpus="$gpus" --disable-usage-stats
srun --het-group=1 --nodes="$runner_nodes" --ntasks="$runner_nodes" \
  ray start --address="$address" --num-cpus="$cpus" --num-gpus=0 --block \
  >"toolagent-$SLURM_JOB_ID-runners.out" 2>&1 &

# Slurm signals this shell alone; it passes that on, once to each process.
python "$here/with_nodes.py" --cpus "$runners" --gpus "$gpus" --wait-s 300 -- \
  python -m toolagent.run --num-env-runners "$((runners - 1 + gpus))" \
  --num-learners 1 --num-gpus-per-learner "$gpus" "$@" &
run=$!
trap 'kill -TERM "$run" || true; pkill -TERM -P "$run" || true' TERM INT
code=0
wait "$run" || code=$?
while kill -0 "$run" 2>/dev/null; do # a signal ends `wait` before the run has ended
  code=0
  wait "$run" || code=$?
done
exit "$code"
