#!/usr/bin/env bash
#
# Trains on the NVIDIA GPUs of this machine: makes .venv, installs jax with CUDA, checks that jax sees the GPUs, trains.
#
#   bash launch/gpu.sh --config=configs/X.py [flags of r1jax.train]
#   bash launch/gpu.sh --dry-run --config=configs/X.py     prints every command and runs none
#   PYTHON=python3.12 bash launch/gpu.sh ...               with this Python
#
# Environment, all of it optional:
#   CUDA_VISIBLE_DEVICES            the GPUs to use, as in 0,1; default: all
#   XLA_PYTHON_CLIENT_MEM_FRACTION  share of GPU memory that jax takes at its start; default here .92 (jax's own is .75)
#   XLA_FLAGS                       compiler flags; --xla_gpu_enable_latency_hiding_scheduler=true overlaps communication
#   JAX_COMPILATION_CACHE_DIR       compiled programs are kept here; default .cache/jax
#   NCCL_DEBUG=INFO                 when GPUs do not find each other

dry=''
if [ "${1-}" = --dry-run ]; then
  dry=yes
  shift
fi
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [ $# = 0 ]; then
  echo "error: the flags of r1jax.train are missing, as in: bash launch/gpu.sh --config=configs/X.py" >&2
  exit 2
fi

export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$ROOT/.cache/jax}

do_it() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

do_it make_venv
do_it install gpu
do_it "$VENV/bin/python" -c 'import jax; gpus = jax.devices("gpu"); print(len(gpus), "x", gpus[0].device_kind)'
do_it "$VENV/bin/python" -m r1jax.train "$@"
