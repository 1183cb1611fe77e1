#!/bin/bash
# 16 agents of ablate; each works on the store until nothing is left, and is replaced when it is cut short
#SBATCH --job-name=ablate
#SBATCH --array=1-16
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --time=240
#SBATCH --signal=USR2@120
#SBATCH --open-mode=append
#SBATCH --output=/home/you/project/runs/agents/slurm-%A-%a.log
#SBATCH --requeue
#SBATCH --account=x
#SBATCH -p gpu

export ABLATE_STORE=postgresql+psycopg://researcher@db.example.org/ablate
export ABLATE_AGENT=slurm-$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID
cd /home/you/project || exit 2
srun --nodes=1 --ntasks=1 --kill-on-bad-exit=0 /home/you/venv/bin/python -m ablate agent mine@quick --idle-timeout 10m --max-trials 3
status=$?

# 75: warned of its time's end, or needs more of it. 143: preempted. 140: warned before it had begun.
# A job that was cancelled is no longer RUNNING, and stays away.
job=$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID
case $status in
75 | 140 | 143) [ "$(squeue --noheader --jobs="$job" --format=%T)" = RUNNING ] && scontrol requeue "$job" ;;
esac
exit $status
