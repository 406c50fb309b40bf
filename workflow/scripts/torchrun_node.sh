#!/usr/bin/env bash
# One node's share of a training on several nodes: srun starts it once on each, and the nodes meet on the first one.
# A process a GPU that the job has here, one where it has none.
set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$first" | grep -o 'NodeAddr=[^ ]*')
gpus=$(tr ',' '\n' <<<"${CUDA_VISIBLE_DEVICES:-}" | grep -c . || true)
exec torchrun --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --nproc-per-node "$((gpus > 0 ? gpus : 1))" \
  --master-addr "${address#NodeAddr=}" --master-port "$((20000 + SLURM_JOB_ID % 40000))" -m kdtrans "$@"
