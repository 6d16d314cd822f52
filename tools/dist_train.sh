#!/usr/bin/env bash
# Train on several devices of one machine: tools/dist_train.sh RECIPE GPUS --work-dir DIR [options of `synthaug train`]
set -euo pipefail
[ $# -ge 2 ] || { sed -n 2p "$0" >&2; exit 2; }
recipe=$1 gpus=$2
shift 2
exec torchrun --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
  --nproc_per_node="$gpus" "$(dirname "$0")/train.py" "$recipe" "$@" --launcher pytorch
