#!/usr/bin/env bash
# Train on several nodes with Slurm: sbatch examples/slurm.sh run.toml
# One torchrun per node starts one process per GPU. After a requeue, the run resumes from its newest checkpoint.
#SBATCH --job-name=cwm-train
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
#SBATCH --output=%x-%j.log
set -euo pipefail

config="${1:?usage: sbatch slurm.sh CONFIG.toml}"
environment="${CWM_VENV:-.venv}" # on a file system that all nodes see

head_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
gpus="${SLURM_GPUS_ON_NODE:-8}"

srun --kill-on-bad-exit=1 "$environment/bin/torchrun" \
  --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc-per-node "$gpus" \
  --rdzv-id "$SLURM_JOB_ID" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$head_node:29500" \
  -m cwm_core train "$config"
