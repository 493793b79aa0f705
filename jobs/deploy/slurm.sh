#!/bin/bash
# promptmill on Slurm: `sbatch jobs/deploy/slurm.sh CONFIG --out OUT`, from the repository, which all nodes see. From nothing to a
# finished dataset: docs/slurm.md. Change the lines below, or override them: `sbatch --nodes=4 --time=2:00:00 jobs/deploy/slurm.sh …`
#SBATCH --job-name=promptmill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=08:00:00
#SBATCH --output=promptmill-%j.log
#SBATCH --open-mode=append
# A node that dies leaves the others at work; when it is the first one, or the job is preempted, Slurm starts the job again.
#SBATCH --no-kill
#SBATCH --requeue
# Three minutes before the time is up the driver is asked to stop, and the job goes back into the queue.
#SBATCH --signal=B:USR1@180
set -euo pipefail

export PATH="$PWD/.venv/bin:$PATH"
# Ray on the first node listens here; set it where the first address that the node has is not one that the others reach.
address=${PROMPTMILL_HEAD_IP:-$(hostname -I | cut -d' ' -f1)}:$((20000 + SLURM_JOB_ID % 10000))

# Nobody without the token runs code on these nodes. It lies in the home folder, which the nodes share.
export RAY_AUTH_MODE=token
if [ -z "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ]; then
    (umask 077 && ray get-auth-token --generate >/dev/null)
fi
export RAY_USAGE_STATS_ENABLED=0
# Seconds that nodes wait for each other.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-600}
# Once the first node has ended, the others hold theirs for as long.
export RAY_gcs_rpc_server_reconnect_timeout_s=20

here=${TMPDIR:-/tmp}/promptmill-$SLURM_JOB_ID # on the first node, where this script and the driver run
rm -f "$here".*

# Ask the driver to finish what is in flight; only once, since a second signal stops it at once.
# shellcheck disable=SC2329 # traps call it
tell() { # HERE
    if mv "$1.pid" "$1.told" 2>/dev/null; then
        kill -TERM "$(cat "$1.told")" 2>/dev/null || true # it may have ended by itself
    fi
}

# What `ray symmetric-run` runs on the first node, once all are there.
# shellcheck disable=SC2329 # srun calls it
driver() { # HERE CONFIG …
    local here=$1 status=0
    shift
    promptmill run "$@" --address auto --wait 90 &
    echo "$!" >"$here.new"
    mv "$here.new" "$here.pid" # whole, since whoever tells it may come at once
    [ ! -e "$here.stop" ] || tell "$here" # asked for before there was a driver
    wait "$!" || status=$?
    echo "$status" >"$here.status"
    return "$status"
}

# shellcheck disable=SC2329 # traps call it
stop() { # requeue | end
    echo "promptmill: stopping ($1)"
    # Who ended the job does not want it back, whatever comes after.
    [ "$(cat "$here.stop" 2>/dev/null)" = end ] || echo "$1" >"$here.stop"
    tell "$here"
}
trap 'stop requeue' USR1
trap 'stop end' TERM

srun --no-kill --kill-on-bad-exit=0 --wait=0 --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus="$SLURM_CPUS_PER_TASK" -- \
    bash -c "$(declare -f tell driver); driver \"\$@\"" driver "$here" "$@" &

status=0
while kill -0 "$!" 2>/dev/null; do # a signal that is trapped ends the wait, not the job
    wait "$!" && status=0 || status=$?
done
# The driver's own: srun's is the worst of all nodes', dead ones too.
[ ! -f "$here.status" ] || status=$(cat "$here.status")
asked=$(cat "$here.stop" 2>/dev/null || true)
rm -f "$here".*

# 0 is done; 3 is done too, with failed rows in the dataset. Anything else of a driver that was told to stop is unfinished.
if [ "$asked" = requeue ] && [ "$status" -ne 0 ] && [ "$status" -ne 3 ]; then
    echo "promptmill: back into the queue, to go on from here"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
