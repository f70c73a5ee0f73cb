#!/usr/bin/env bash
# ops/slurm/train.sbatch on a real Slurm of one node: a job is asked to end, goes back into the queue and resumes; one whose
# rank is killed does, too; a wrong configuration and `scancel` end a job for good. munged, slurmctld and slurmd run as
# this user, in a temporary folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
. ops/env.sh

checkout=$PWD
work=$(mktemp -d /tmp/slurm.XXXXXX) # short: the path of a socket has 107 letters at most
readonly checkout work
readonly patience_secs=600
export SLURM_CONF=$work/slurm.conf PATH=$checkout/target/release:/usr/sbin:$PATH

fail() {
    echo "slurm: $*" >&2
    tail -n 30 "$work"/*.log >&2
    exit 1
}

pid_of() { cat "$work/$1.pid" 2>/dev/null; }

gone() { ! kill -0 "$1" 2>/dev/null; }

no_job() { [ -z "$(squeue --noheader 2>&1)" ]; }

# until_it_holds WHAT COMMAND...
until_it_holds() {
    local what=$1 deadline=$((SECONDS + patience_secs))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || {
            echo "slurm: waited $patience_secs s in vain until $what" >&2
            return 1
        }
        sleep 0.2
    done
}

# Jobs first: slurmd leaves the processes of a job alone when it ends.
end() {
    local daemon pid
    if scancel --user="$(id -un)" 2>/dev/null; then
        until_it_holds "no job runs" no_job || true
    fi
    for daemon in slurmd slurmctld munged; do
        if pid=$(pid_of $daemon) && kill "$pid" 2>/dev/null; then
            until_it_holds "$daemon ends" gone "$pid" || true
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
    # A job in the queue starts again when its old credential has expired: after two minutes, unless set; five
    # seconds are the least.
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
    until_it_holds "the node is idle" node_is_idle || fail "Slurm does not start"
}

# submit NAME OPTION... -- OVERRIDE... : its output goes to NAME.log, its number to $job. The demo's few epochs would end
# a run early on a fast machine, so that train.max_steps alone ends it.
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

says() { grep -Eqs -- "$2" "$work/$1.log"; }

state() { scontrol show job "$1" | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p'; }

is() { [ "$(state "$1")" = "$2" ]; }

# expect NAME PATTERN : the job's log says it in the end.
expect() { until_it_holds "$1.log says $2" says "$1" "$2" || fail "$1 failed"; }

expect_state() { until_it_holds "job $1 is $2" is "$1" "$2" || fail "job $1 is $(state "$1")"; }

trap end EXIT
start_slurm
srun --mpi=list 2>&1 | grep -q pmix || fail "this Slurm has no plugin for PMIx"

sbatch --test-only ops/slurm/train.sbatch demo.yaml 2>&1 | grep -q 'to start at' || fail "sbatch --test-only refuses it"

# Long enough that a signal after the first step still finds it at work on a fast machine.
readonly steps=200

submit asked -- train.max_steps=$steps
expect asked "step 1/$steps "
scancel --batch --signal=USR1 "$job" # what Slurm does before the time limit
expect asked 'asked to end; the ranks save'
expect asked 'stopped by a signal after saving step [0-9]+; start again to go on'
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
says wrong 'start 1: the configuration or command line must be changed' || fail "exit code 78 is not understood"

submit cancelled -- train.max_steps=100000000
expect cancelled 'step 1/'
scancel "$job"
expect_state "$job" CANCELLED
expect cancelled 'stopped by a signal after saving step'
