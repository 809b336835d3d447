#!/bin/bash
# A sweep as a Slurm job: Ray on all of its nodes, the driver on the first, requeued until the sweep is done.
#
#   sbatch launch/clusters/slurm.sh run --space my_space.yaml --storage /shared/runs
#
# Change the lines #SBATCH. `ray symmetric-run` ends every Ray of this user on its nodes, hence --exclusive. Before the time
# is over Slurm sends USR1 to this script, which passes it to the driver: that saves, ends with 75, and the job is requeued.
#SBATCH --job-name=speechft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=speechft-%j.log
set -u
umask 077
# A folder of this job alone, which all nodes see; $SPEECHFT_STATE says where it is made.
state=${SPEECHFT_STATE:-$HOME/.speechft}/slurm-$SLURM_JOB_ID
mkdir -p "$state"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$state/token
[ -s "$state/token" ] || od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$state/token"

# The batch script runs on the first node of the job, and so does the driver.
address=$(hostname -I | cut -d' ' -f1):$((20000 + SLURM_JOB_ID % 20000))
driver='echo $$ > "$0/process"; exec speechft "$@"'
srun ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" --temp-dir "/tmp/ray-$SLURM_JOB_ID" \
    -- bash -c "$driver" "$state" "$@" --address "$address" &
step=$!
stop() { [ -s "$state/process" ] && kill -USR1 "$(cat "$state/process")"; }
trap stop USR1 TERM
wait "$step"; code=$?
while kill -0 "$step" 2> /dev/null; do wait "$step"; code=$?; done
rm -f "$state/token" "$state/process"
rmdir "$state"
[ "$code" -ne 75 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$code"
