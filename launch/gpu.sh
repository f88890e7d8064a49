#!/usr/bin/env bash
#
# Trains on the NVIDIA GPUs of this machine: checks the driver, makes .venv, installs jax with CUDA, checks that jax sees
# the GPUs, trains. Relative paths in the flags are meant from the repository's root.
#
#   bash launch/gpu.sh --config=configs/X.py [flags of r1jax.train]
#   bash launch/gpu.sh --cuda12 --config=configs/X.py      CUDA 12, for drivers from 525 on; CUDA 13 needs 580
#   bash launch/gpu.sh --dry-run --config=configs/X.py     prints every command and runs none
#   PYTHON=python3.12 bash launch/gpu.sh ...               with this Python
#
# --cuda12 and --dry-run may stand anywhere among the flags. Ctrl-C and SIGTERM let the run save and end; the same command
# goes on from there. The exit code is the run's (docs/reliability.md).
#
# Environment, all of it optional:
#   CUDA_VISIBLE_DEVICES            the GPUs to use, as in 0,1; default: all
#   XLA_PYTHON_CLIENT_MEM_FRACTION  share of GPU memory that jax takes at its start; default here .92 (jax's own is .75)
#   XLA_FLAGS                       compiler flags; --xla_gpu_enable_latency_hiding_scheduler=true overlaps communication
#   JAX_COMPILATION_CACHE_DIR       compiled programs are kept here; default .cache/jax
#   NCCL_DEBUG=INFO                 when GPUs do not find each other

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
help_if_asked "$@"

dry='' extra=gpu needed=580 arguments=()
for argument; do
  case $argument in
    --dry-run) dry=yes ;;
    --cuda12) extra=gpu-cuda12 needed=525 ;;
    *) arguments+=("$argument") ;;
  esac
done
if [ ${#arguments[@]} = 0 ]; then
  echo "error: the flags of r1jax.train are missing, as in: bash launch/gpu.sh --config=configs/X.py" >&2
  exit 2
fi

export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$ROOT/.cache/jax}

# Before hundreds of megabytes are installed.
check_driver() {
  local version
  version=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) || version=''
  case $version in
    [0-9]*) ;;
    *)
      echo "error: nvidia-smi finds no NVIDIA driver with a GPU here" >&2
      exit 2
      ;;
  esac
  if [ "${version%%.*}" -lt "$needed" ]; then
    echo "error: the NVIDIA driver is $version, and CUDA for $extra needs $needed or later" \
      "$([ "$extra" = gpu ] && [ "${version%%.*}" -ge 525 ] && echo "(or add --cuda12)")" >&2
    exit 2
  fi
}

check='import jax; gpus = jax.devices("gpu"); print(len(gpus), "x", gpus[0].device_kind)'
if [ -n "$dry" ]; then
  printf 'export %s=%q\n' XLA_PYTHON_CLIENT_MEM_FRACTION "$XLA_PYTHON_CLIENT_MEM_FRACTION" \
    JAX_COMPILATION_CACHE_DIR "$JAX_COMPILATION_CACHE_DIR"
  printf 'nvidia-smi --query-gpu=driver_version --format=csv\n'
  printf '%q ' cd "$ROOT"
  printf '\n'
  printf '%q ' ${PYTHON:+env "PYTHON=$PYTHON"} bash launch/environment.sh install "$extra"
  printf '\n'
  printf '%q ' "$VENV/bin/python" -c "$check"
  printf '\n'
  printf '%q ' "$VENV/bin/python" -m r1jax.train "${arguments[@]}"
  printf '\n'
  exit 0
fi
check_driver
make_venv
install "$extra"
"$VENV/bin/python" -c "$check"
trap - INT TERM
exec "$VENV/bin/python" -m r1jax.train "${arguments[@]}"
