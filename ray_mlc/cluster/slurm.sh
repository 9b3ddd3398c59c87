# shellcheck shell=bash
# shellcheck disable=SC2153  # NAME, ACTIVATE, SCRATCH, STARTUP and RESTARTS are set above
# A Ray of this job alone: the head on the first node, a worker on each other one, and the work in
# this script. At a SIGTERM, which Slurm sends some minutes before the time limit, the work ends
# what is in flight; then the job is put back into the queue, and the same script continues it.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?this is a job for sbatch}"

say() { echo "[$(date '+%F %T')] $*" >&2; }

if [[ -n $ACTIVATE ]]; then
    # shellcheck source=/dev/null
    source "$ACTIVATE"
fi
for tool in ray ray-mlc python; do
    command -v "$tool" >/dev/null || { say "$tool is not in the PATH: set slurm.activate"; exit 2; }
done

# On the submit folder's file system, which every node sees: the token and the head's address.
STATE=$(mktemp -d ".ray-mlc-$SLURM_JOB_ID.XXXXXX")
STATE=$PWD/$STATE
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' >"$STATE/auth_token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$STATE/auth_token RAY_USAGE_STATS_ENABLED=0
export RAY_idle_worker_killing_time_threshold_ms=300000 # or each read and write starts a Python
unset RAY_ADDRESS RAY_AUTH_TOKEN # of the shell that submitted
export STATE SCRATCH STARTUP
steps=() driver='' stopping=0

# In a step of its own on each node. Ports are chosen by the system, so that jobs of several users
# on one node do not meet; so is the folder for sockets, logs and what does not fit into memory.
# shellcheck disable=SC2317,SC2329  # called by srun
ray_node() {
    local folder ray code=0
    folder=$(mktemp -d "$SCRATCH/rm.XXXXXX")
    ray start --block "$@" --temp-dir="$folder" --num-cpus="${SLURM_CPUS_PER_TASK:-1}" \
        --dashboard-agent-listen-port=0 --min-worker-port=0 --max-worker-port=0 &
    ray=$!
    trap 'kill -TERM "$ray" 2>/dev/null' TERM INT
    if [[ $1 == --head ]]; then
        while kill -0 "$ray" 2>/dev/null && [[ ! -s $folder/ray_current_cluster ]]; do
            sleep 0.2
        done
        # renamed, so that nobody reads half of it
        cat "$folder/ray_current_cluster" >"$STATE/address.new" 2>/dev/null || true
        mv "$STATE/address.new" "$STATE/address"
    fi
    wait "$ray" || code=$?
    while kill -0 "$ray" 2>/dev/null; do wait "$ray" || code=$?; done
    rm -rf "$folder"
    return "$code"
}
export -f ray_node

# shellcheck disable=SC2317,SC2329  # called by traps
stop() {
    ((stopping += 1))
    say "SIG$1: finishing what is in flight"
    if [[ $1 == INT ]]; then RESTARTS=0; fi # that was somebody, and not the clock
    if [[ -n $driver ]]; then kill -TERM "$driver" 2>/dev/null || true; fi
}

# shellcheck disable=SC2317,SC2329
clean() {
    trap - EXIT
    trap '' TERM INT
    # workers before the head, or they complain that it is gone
    local place
    for ((place = ${#steps[@]} - 1; place >= 0; place--)); do
        kill -TERM "${steps[place]}" 2>/dev/null || true
        wait "${steps[place]}" 2>/dev/null || true
    done
    rm -rf "$STATE"
}

trap 'stop TERM' TERM
trap 'stop INT' INT
trap clean EXIT

start_node() {
    local node=$1
    shift
    # shellcheck disable=SC2016  # expanded on the node
    srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap --export=ALL \
        --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
        bash -c 'ray_node "$@"' ray_node "$@" &
    steps+=("$!")
}

# Waits for a file or a command in short steps, so that a signal is answered meanwhile.
wait_for() {
    local patience=$((SECONDS + STARTUP))
    until "$@"; do
        if ((stopping || SECONDS > patience)) || ! kill -0 "${steps[0]}" 2>/dev/null; then
            return 1
        fi
        sleep 0.3 &
        wait "$!" || true
    done
}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
say "${#nodes[@]} node(s): ${nodes[*]}"
start_node "${nodes[0]}" --head --port=0 --include-dashboard=false
if ! wait_for test -s "$STATE/address"; then
    ((stopping)) || say "the head did not start: see above"
    exit 1
fi
address=$(<"$STATE/address")
for node in "${nodes[@]:1}"; do start_node "$node" --address="$address"; done

# How many nodes have come; those that do not come in time are done without.
python - "$address" "${#nodes[@]}" "$STARTUP" <<'PYTHON' &
import sys
import time

import ray

address, wanted, patience = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
ray.init(address=address, log_to_driver=False, logging_level="ERROR")
began = time.monotonic()
while True:
    alive = sum(node["Alive"] for node in ray.nodes())
    if alive >= wanted or time.monotonic() - began > patience:
        break
    time.sleep(0.5)
print(f"{alive} of {wanted} node(s) are there", file=sys.stderr)
PYTHON
driver=$!
code=0
wait "$driver" || code=$?
if ((stopping)); then code=130; elif ((code)); then say "Ray does not answer"; fi

if ((code == 0)); then
    ray-mlc "$NAME" "$NAME.yaml" --address "$address" &
    driver=$!
    seen=-1
    while ((seen != stopping)); do # a signal ends the wait, not the work
        seen=$stopping code=0
        wait "$driver" || code=$?
    done
fi
say "ray-mlc $NAME: exit code $code"
clean

# 2, 3 and 4 are answers that another run would not change; see the README's exit codes
case $code in
0 | 2 | 3 | 4) exit "$code" ;;
esac
if ((${SLURM_RESTART_COUNT:-0} < RESTARTS)); then
    say "back into the queue (restart ${SLURM_RESTART_COUNT:-0} of $RESTARTS)"
    scontrol requeue "$SLURM_JOB_ID" || say "requeue was refused: submit it again, it continues"
fi
exit "$code"
