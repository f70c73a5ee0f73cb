#!/usr/bin/env bash
# Tests ops/slurm/train.sbatch on a real Slurm with one node: a job is requeued and resumes after SIGUSR1 and after a
# rank is killed, but not after a configuration error or `scancel`. munged, slurmctld and slurmd run as this user, in a
# temporary folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
. ops/env.sh

checkout=$PWD
work=$(mktemp -d /tmp/slurm.XXXXXX) # short, because a socket's path has at most 107 bytes
readonly checkout work
readonly timeout_secs=600
export SLURM_CONF=$work/slurm.conf PATH=$checkout/target/release:/usr/sbin:$PATH

fail() {
    echo "slurm: $*" >&2
    tail -n 30 "$work"/*.log >&2
    exit 1
}

pid_of() { cat "$work/$1.pid" 2>/dev/null; }

has_exited() { ! kill -0 "$1" 2>/dev/null; }

no_job() { [ -z "$(squeue --noheader 2>&1)" ]; }

# wait_until WHAT COMMAND... : waits until the command succeeds, or fails after a timeout.
wait_until() {
    local what=$1 deadline=$((SECONDS + timeout_secs))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || {
            echo "slurm: timed out after $timeout_secs s waiting until $what" >&2
            return 1
        }
        sleep 0.2
    done
}

# Ends the jobs and then the daemons, because slurmd does not end a job's processes when it exits.
cleanup() {
    local daemon pid
    if scancel --user="$(id -un)" 2>/dev/null; then
        wait_until "no job runs" no_job || true
    fi
    for daemon in slurmd slurmctld munged; do
        if pid=$(pid_of $daemon) && kill "$pid" 2>/dev/null; then
            wait_until "$daemon exits" has_exited "$pid" || true
        fi
    done
    rm -rf "$work"
}

free_ports() {
    python3 -c 'import socket
sockets = [socket.socket() for _ in range(2)]
for one in sockets: one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in sockets))'
}

node_is_idle() { [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; }

start_slurm() {
    local me controller node
    me=$(id -un)
    read -r controller node <<<"$(free_ports)"
    # A requeued job starts only after its old credential has expired: by default after two minutes; the minimum is five
    # seconds.
    cat >"$SLURM_CONF" <<END
ClusterName=trial
SlurmctldHost=localhost
SlurmctldPort=$controller
SlurmdPort=$node
SlurmUser=$me
SlurmdUser=$me
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
AuthInfo=socket=$work/munge/socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName=localhost CPUs=$(env -u OMP_NUM_THREADS nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
END
    mkdir -m 755 "$work/munge" "$work/state" "$work/spool"
    (umask 077 && head -c 128 /dev/urandom >"$work/munge/key")
    munged --force --key-file="$work/munge/key" --socket="$work/munge/socket" --pid-file="$work/munged.pid" \
        --log-file="$work/munged.log" --seed-file="$work/munge/seed"
    slurmctld
    slurmd -N localhost
    wait_until "the node is idle" node_is_idle || fail "Slurm did not start"
}

# submit NAME OPTION... -- OVERRIDE... : submits a job that writes to NAME.log, and stores its number in $job. The run
# only ends at train.max_steps; the demo's few epochs would end it early on a fast machine.
submit() {
    local name=$1 options=() overrides=() override
    shift
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    for override in "$@"; do overrides+=(--set "$override"); done
    job=$(sbatch --parsable --ntasks-per-node=2 --overcommit --output="$work/$name.log" "${options[@]}" \
        ops/slurm/train.sbatch configs/demo.yaml --set data.url=synthetic: --set checkpoint.every=1h \
        --set optim.epochs=1000000 --set run.dir="$work/$name" --set run.log_dir="$work/$name/logs" "${overrides[@]}")
}

log_has() { grep -Eqs -- "$2" "$work/$1.log"; }

state() { scontrol show job "$1" | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p'; }

has_state() { [ "$(state "$1")" = "$2" ]; }

# expect NAME PATTERN : waits until the job's log matches the pattern.
expect() { wait_until "$1.log has $2" log_has "$1" "$2" || fail "$1 failed"; }

expect_state() { wait_until "job $1 is $2" has_state "$1" "$2" || fail "job $1 is $(state "$1")"; }

trap cleanup EXIT
start_slurm
srun --mpi=list 2>&1 | grep -q pmix || fail "this Slurm has no PMIx plugin"

sbatch --test-only ops/slurm/train.sbatch demo.yaml 2>&1 | grep -q 'to start at' ||
    fail "sbatch --test-only refuses the script"

# Long enough that the run has not ended when a signal is sent after the first step, even on a fast machine.
readonly steps=200

submit asked -- train.max_steps=$steps
expect asked "step 1/$steps "
scancel --batch --signal=USR1 "$job" # what Slurm does before the time limit
expect asked 'asked to end; the ranks save'
expect asked 'stopped by a signal after saving step [0-9]+; start again to resume'
expect asked 'start 2: .* 2 ranks'
expect asked "resuming from $work/asked/step-"
expect asked 'start 2: the run is done'
expect_state "$job" COMPLETED

submit killed --export=ALL,ARINAR_FRUITFUL_SECS=0 -- train.max_steps=$steps
expect killed "step 1/$steps "
rank=$(scontrol listpids "$job" | awk '$3 == 0 && $5 == 1 { print $1 }')
kill -9 "$rank"
expect killed 'start 1: failed with exit code 137'
expect killed 'start 2: the run is done'
expect_state "$job" COMPLETED

submit wrong -- train.max_stepz=1
expect wrong 'did you mean "max_steps"'
expect_state "$job" FAILED
log_has wrong 'start 1: the configuration or command line must be changed' ||
    fail "the script does not report exit code 78"

submit cancelled -- train.max_steps=100000000
expect cancelled 'step 1/'
scancel "$job"
expect_state "$job" CANCELLED
expect cancelled 'stopped by a signal after saving step'
