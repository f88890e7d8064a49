#!/usr/bin/env bash
#
# Trains on a Cloud TPU slice, from nothing to logs: asks for the slice through queued resources, waits for it, copies the
# code, installs it on every host, runs, and shows the first host's log. If the slice is preempted it is asked for again
# and the run goes on from its last checkpoint. At the end the slice is deleted.
#
#   bash launch/tpu_pod.sh --name=NAME --type=v6e-16 --zone=ZONE --bucket=BUCKET -- --config=configs/X.py ...
#
# What stands behind -- goes to `python -m r1jax.train` as it is.
#
#   --name=NAME       of the slice and its request; letters, digits and dashes
#   --type=TYPE       accelerator type: v5litepod-16, v5p-64, v6e-16, ... (`gcloud compute tpus accelerator-types list`)
#   --zone=ZONE       where it is, as in us-east5-b
#   --bucket=BUCKET   a Cloud Storage bucket, mounted on every host at /mnt/r1jax; the run writes to runs/NAME in it, and
#                     so outlives the slice
#   --workdir=DIR     instead: a folder on a disk that all hosts have mounted already
#   --runtime=IMAGE   the machine image; default v2-alpha-tpuv6e, v2-alpha-tpuv5 or v2-alpha-tpuv5-lite, by the type
#   --slices=N        that many slices joined over the data-center network (config.mesh.data goes across); default 1
#   --spot            cheap and preemptible; --reserved: from your reservation; default: on demand
#   --project=ID      default: gcloud's own
#   --keep            leave the slice up at the end, for another run (it costs until you delete it)
#   --tries=N         how often a preempted run is taken up again; default 20
#   --dry-run         prints every command and runs none
#
# Environment that reaches the hosts: R1JAX_CLUSTER=tpu (join the other hosts by the machine's metadata), LIBTPU_INIT_ARGS
# (flags of the TPU compiler, e.g. --xla_tpu_scoped_vmem_limit_kib=65536), HF_TOKEN (for gated models) and WANDB_API_KEY
# where they are set here; JAX_COMPILATION_CACHE_DIR is WORKDIR/cache, so that a resumed run does not compile anew.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  sed -n '3,/^$/{s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" >&2
  exit 2
}

fail() {
  echo "error: $*" >&2
  exit 2
}

name='' type='' zone='' bucket='' workdir='' runtime='' slices=1 project='' capacity='' keep='' tries=20 dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --workdir=*) workdir=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --tries=*) tries=${1#*=} ;;
    --spot) capacity=--spot ;;
    --reserved) capacity=--reserved ;;
    --keep) keep=yes ;;
    --dry-run) dry=yes ;;
    --help | -h) usage ;;
    --)
      shift
      break
      ;;
    *) fail "unknown argument $1 (see --help)" ;;
  esac
  shift
done
[ -n "$name" ] || fail "--name is missing (see --help)"
[ -n "$type" ] || fail "--type is missing, as in --type=v6e-16 (see --help)"
[ -n "$zone" ] || fail "--zone is missing, as in --zone=us-east5-b (see --help)"
[ -n "$bucket$workdir" ] || fail "--bucket is missing; a preempted run goes on from there (see --help)"
[ $# -gt 0 ] || fail "the flags of r1jax.train are missing behind --, as in: -- --config=configs/X.py"
case $slices$tries in *[!0-9]*) fail "--slices and --tries must be whole numbers" ;; esac
bucket=${bucket#gs://}
workdir=${workdir:-/mnt/r1jax/runs/$name}
case $workdir in /*) ;; *) fail "--workdir must be an absolute path on all hosts, got $workdir" ;; esac
if [ -z "$runtime" ]; then
  case $type in
    v6e*) runtime=v2-alpha-tpuv6e ;;
    v5p*) runtime=v2-alpha-tpuv5 ;;
    v5lite*) runtime=v2-alpha-tpuv5-lite ;;
    *) fail "no machine image is known for $type; name one with --runtime" ;;
  esac
fi

# Runs a command, or prints it as it could be typed.
do_it() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

tpu() { do_it gcloud compute tpus "$@" --zone="$zone" ${project:+--project="$project"}; }

# The nodes of the request: one a slice.
nodes() {
  if [ "$slices" = 1 ]; then
    echo "$name"
  else
    seq -f "$name-%.0f" 0 $((slices - 1))
  fi
}

create() {
  local shape=(--node-id="$name")
  if [ "$slices" != 1 ]; then shape=(--node-prefix="$name" --node-count="$slices"); fi
  tpu queued-resources create "$name" "${shape[@]}" --accelerator-type="$type" --runtime-version="$runtime" \
    ${capacity:+"$capacity"}
}

state() {
  gcloud compute tpus queued-resources describe "$name" --zone="$zone" ${project:+--project="$project"} \
    --format='value(state.state)' 2>/dev/null || true
}

# Until the slice is there. A request that failed is deleted and made again by the caller.
wait_for_it() {
  local now
  if [ -n "$dry" ]; then
    tpu queued-resources describe "$name" --format='value(state.state)'
    return 0
  fi
  while :; do
    now=$(state)
    echo "== $(date +%H:%M:%S) the request $name is ${now:-gone}"
    case $now in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED | SUSPENDING | '') return 1 ;;
    esac
    sleep 30
  done
}

delete() { tpu queued-resources delete "$name" --force --quiet || [ -n "$(state)" ]; }

on_all() { # NODE COMMAND: on every host of a slice
  tpu tpu-vm ssh "$1" --worker=all --command="$2"
}

# What every host runs before anything else; quoted, since it is for their shells.
PYTHON='python3.12 --version >/dev/null 2>&1 || (sudo apt-get -qq update && sudo apt-get -qq install -y python3.12 python3.12-venv)'
UNPACK='rm -rf r1jax && mkdir r1jax && tar -xzf r1jax.tgz -C r1jax'
INSTALL='cd r1jax && python3.12 -m venv ~/venv && ~/venv/bin/pip install -q -e ".[tpu]"'
# shellcheck disable=SC2016
GCSFUSE='gcsfuse --version >/dev/null 2>&1 || (echo "deb https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list && sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse)'
# shellcheck disable=SC2016
MOUNT='sudo mkdir -p /mnt/r1jax && sudo chown "$USER" /mnt/r1jax && (mountpoint -q /mnt/r1jax || gcsfuse --implicit-dirs --rename-dir-limit=200000 BUCKET /mnt/r1jax)'

install_code() {
  local node archive=/tmp/r1jax-$name.tgz
  do_it tar -czf "$archive" --exclude=.git --exclude=.venv --exclude=.cache --exclude=runs --exclude=models .
  for node in $(nodes); do
    tpu tpu-vm scp "$archive" "$node:r1jax.tgz" --worker=all
    if [ -n "$bucket" ]; then on_all "$node" "($GCSFUSE) && ${MOUNT/BUCKET/$bucket}"; fi
    on_all "$node" "($PYTHON) && $UNPACK && $INSTALL"
  done
}

# The command of every host. Logs stay on the host; the first one's is shown.
train() {
  local node pids=() variable command
  local passed="R1JAX_CLUSTER=tpu JAX_COMPILATION_CACHE_DIR=$workdir/cache"
  for variable in LIBTPU_INIT_ARGS HF_TOKEN WANDB_API_KEY; do
    if [ -n "${!variable:-}" ]; then passed+=" $variable=$(printf %q "${!variable}")"; fi
  done
  command="cd r1jax && env $passed ~/venv/bin/python -m r1jax.train --workdir=$(printf %q "$workdir") $(printf '%q ' "$@")> ~/r1jax.log 2>&1"
  for node in $(nodes); do
    if [ -n "$dry" ]; then
      on_all "$node" "$command"
    else
      on_all "$node" "$command" &
      pids+=($!)
    fi
  done
  node=$(nodes | head -n 1)
  if [ -n "$dry" ]; then
    tpu tpu-vm ssh "$node" --worker=0 --command='tail -n +1 -F r1jax.log'
    return 0
  fi
  sleep 20
  tpu tpu-vm ssh "$node" --worker=0 --command='tail -n +1 -F r1jax.log' &
  local shown=$! failed=0 pid
  for pid in "${pids[@]}"; do wait "$pid" || failed=$?; done
  kill "$shown" 2>/dev/null || true
  return "$failed"
}

finish() {
  if [ -n "$keep" ]; then
    echo "== $name stays up; delete it with: gcloud compute tpus queued-resources delete $name --force --zone=$zone"
  else
    delete
  fi
}

for ((try = 1; try <= tries; try++)); do
  echo "== try $try of $tries"
  if [ -n "$dry" ] || [ "$(state)" != ACTIVE ]; then
    if [ -z "$dry" ] && [ -n "$(state)" ]; then delete; fi
    create
    wait_for_it || continue
  fi
  if install_code && train "$@"; then
    finish
    exit 0
  fi
  # A slice that is still there did not lose its machines: the run itself failed, and would again.
  if [ "$(state)" = ACTIVE ]; then
    echo "error: the run failed; its log is r1jax.log on the hosts of $name" >&2
    finish
    exit 1
  fi
  echo "== the slice was taken away; asking for it again"
done
echo "error: given up after $tries tries" >&2
exit 1
