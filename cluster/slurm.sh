#!/usr/bin/env bash
# One training run on Slurm: a node with a GPU that learns, and CPU nodes whose env runners play.
# It is a heterogeneous job; both parts begin and end together.
#
#   python3.11 -m venv ~/toolagent-venv && ~/toolagent-venv/bin/pip install .    # on a shared disk
#   sbatch cluster/slurm.sh --config expression --output-dir "$PWD/runs/first"
#   squeue --me                                     # waiting, or on which nodes
#   tail -f toolagent-JOB.out                       # watch
#   ssh -L 8265:127.0.0.1:8265 NODE                 # the dashboard, at the address in the output,
#                                                   # with the token in .toolagent-JOB.*/auth_token
#   scancel --batch --signal=TERM JOB               # stop: a checkpoint is written
#   sbatch cluster/slurm.sh --resume "$PWD/runs/first"    # continue, also after the time limit
#
# What stands behind slurm.sh goes to `python -m toolagent.run`, which runs on the first node, with
# one env runner a CPU of the second part and one learner on the GPU; later flags win. The checkout,
# the venv (TOOLAGENT_VENV) and --output-dir are on a disk that all nodes share. If the first node
# has several addresses, TOOLAGENT_HEAD_IP says which one the others reach. Nothing is left running
# when the job ends, so nothing idles.
#
# A node that fails, or is set down, ends the job with all of its parts, as does `scancel JOB`, at
# once: continue with --resume, from the last checkpoint (one a minute). (--no-kill changes nothing:
# Slurm ends a heterogeneous job whatever it says, as one part has a single node.) The job tidies up
# then too, within Slurm's KillWait, 30 s by default. A node that lost its power keeps its
# /tmp/toolagent-JOB.*, and the first one .toolagent-JOB.*, with the token of a cluster that is gone.
#
# Without a GPU: delete the line with --gpus-per-node below.
#
# Security: the token is in a file of mode 0600 on the shared disk and goes with the job. It crosses
# the cluster's network in plain text. The dashboard listens on the first node's loopback.
#SBATCH --job-name=toolagent
#SBATCH --output=toolagent-%j.out
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --no-requeue
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=4 --mem=16G
#SBATCH --gpus-per-node=1
#SBATCH hetjob
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=16 --mem=32G
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

# shellcheck disable=SC2329  # called by the trap
finish() {
  trap '' TERM INT
  rm -rf "$private" # before all that may take longer than Slurm gives a job that it ends
  # The other nodes first, while the head is there; srun itself would kill them on a signal.
  if [[ -n "$nodes" ]] && scancel --signal=TERM "$SLURM_JOB_ID_HET_GROUP_1.0" 2>/dev/null; then
    timeout 20 tail --pid="$nodes" --follow /dev/null || true
  fi
  if [[ -n "$head" ]] && kill -TERM "$head" 2>/dev/null; then
    wait "$head" || true
  fi
  rm -rf "$TMPDIR"
}
head="" nodes=""
umask 077
private="$(mktemp -d "$SLURM_SUBMIT_DIR/.toolagent-$SLURM_JOB_ID.XXXXXX")"
# Ray's sessions and all else that is temporary, on every node; Ray's sockets need a short path.
TMPDIR="$(mktemp -d "/tmp/toolagent-$SLURM_JOB_ID.XXXXXX")"
trap finish EXIT
# A token for this job alone; srun passes the environment, which names the file, to all nodes.
export TMPDIR RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$private/auth_token"
python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH"
umask 022

unset RAY_ADDRESS RAY_TMPDIR
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # else nodes of a job that has ended wait for 30 s
# A node that is gone without a word, for whose episodes learning waits, is given up after 20 s
# instead of Ray's 65 s; Slurm itself ends the job later.
export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=3000
# All ports are free ones, as another job may be on the same node; 0 leaves the choice to Ray, which
# takes none for this one, though no client uses it.
unused_port="$(python -c 'import socket; s = socket.create_server(("", 0)); print(s.getsockname()[1])')"
# No CPU on the head: env runners, which ask for one each, are on the other nodes.
ray start --head --block --port=0 --dashboard-host=127.0.0.1 --dashboard-agent-listen-port=0 \
  --ray-client-server-port="$unused_port" --num-cpus=0 --num-gpus="$gpus" --disable-usage-stats \
  --node-ip-address="${TOOLAGENT_HEAD_IP:-$(hostname --all-ip-addresses | cut -d ' ' -f 1)}" &
head=$!
until [[ -s "$TMPDIR/ray/ray_current_cluster" ]]; do
  if ! kill -0 "$head" 2>/dev/null; then
    echo "error: Ray did not start on the first node" >&2
    exit 1
  fi
  sleep 0.5
done
RAY_ADDRESS="$(<"$TMPDIR/ray/ray_current_cluster")"
export RAY_ADDRESS
# One task a node with all of its CPUs. If Ray ends on one of them, the others go on.
# shellcheck disable=SC2016  # expanded on the nodes
srun --het-group=1 --nodes="$runner_nodes" --ntasks="$runner_nodes" --cpus-per-task="$cpus" \
  --export=ALL --kill-on-bad-exit=0 --wait=0 bash -c '
    trap : TERM # Ray gets it too; what is below comes after its end
    mkdir -p -m 700 "$TMPDIR" # Slurm may have made it
    ray start --address="$RAY_ADDRESS" --num-cpus="$1" --num-gpus=0 --block \
      --dashboard-agent-listen-port=0
    rm -rf "$TMPDIR"
  ' bash "$cpus" >"toolagent-$SLURM_JOB_ID-runners.out" 2>&1 &
nodes=$!

# Slurm signals this shell alone; it passes that on, once to each process.
python "$here/with_nodes.py" --cpus "$runners" --gpus "$gpus" --wait-s 300 -- \
  python -m toolagent.run --num-env-runners "$((runners - 1 + gpus))" \
  --num-learners 1 --num-gpus-per-learner "$gpus" "$@" &
run=$!
trap 'kill -TERM "$run" || true; pkill -TERM -P "$run" || true' TERM INT
# Without Ray on the first node, or on any other, the run can do nothing more: it would only wait.
while kill -0 "$run" 2>/dev/null; do
  if ! kill -0 "$head" 2>/dev/null || ! kill -0 "$nodes" 2>/dev/null; then
    echo "error: Ray has ended on the first node or on all others" >&2
    pkill -KILL -P "$run" || true
    kill -KILL "$run" || true
  fi
  sleep 1 & # in the background, as `wait` lets traps through
  wait "$!" || true
done
code=0
wait "$run" || code=$?
exit "$code"
