#!/usr/bin/env bash
#
# What the hosts of a slice do; launch/tpu_pod.py ships this file and calls it over ssh.
#
#   bash host.sh install [BUCKET]   Python, a virtual environment, the wheel, the bucket; nothing that is done already
#   bash host.sh start ATTEMPT      starts the run, detached; once per ATTEMPT, and never beside a run that goes on
#   bash host.sh status             one line: @r1jax HOST none|running|ended|lost CODE ATTEMPT
#   bash host.sh log OFFSET         the log of the newest attempt from a byte on
#   bash host.sh tail               its last lines
#   bash host.sh save               copies the logs into the workdir
#   bash host.sh stop               SIGTERM, five minutes to save, then SIGKILL
#
# Beside this file lie: *.whl, configs/, arguments (of r1jax.train, NUL-separated), extra (of the wheel), workdir and env
# (variables of the run, readable by this user alone). The lock is held by the run and all its children.

set -euo pipefail
case ${1-} in '' | -h | --help)
  sed -n '3,/^$/{s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
  exit 0
  ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")"
umask 077
UV_VERSION=0.13.8

attempt() { cat attempt 2>/dev/null || true; }

fail() {
  echo "error: $(hostname): $*" >&2
  exit 1
}

# Keep the range in step with python_requires in setup.py. Debian and Ubuntu ship a python3 without ensurepip.
probe() {
  "$1" -c '
import ensurepip, ssl, sys, venv
raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1
}

# A virtual environment by the first Python that has all it takes, else by uv, which brings one.
make_venv() {
  local candidate
  if probe venv/bin/python; then return; fi
  rm -rf venv
  for candidate in python3.12 python3.13 python3.11 python3; do
    if probe "$candidate"; then
      "$candidate" -m venv venv
      return
    fi
  done
  find_uv
  "$UV" venv --quiet --python 3.12 --seed venv
}

find_uv() {
  for UV in "$(command -v uv || true)" "$HOME/.local/bin/uv"; do
    if [ -x "$UV" ]; then return; fi
  done
  python3 -m pip install --quiet --user "uv==$UV_VERSION" 2>/dev/null ||
    curl -LsSf "https://astral.sh/uv/$UV_VERSION/install.sh" | sh >/dev/null
  UV=$HOME/.local/bin/uv
  [ -x "$UV" ] || fail "no Python 3.11 to 3.13 with ensurepip here, and uv, which would bring one, cannot be installed"
}

# The wheel with what it needs, again only when the wheel is another.
install_wheel() {
  local wheel extra sum
  wheel=$(echo ./*.whl)
  extra=$(cat extra)
  sum="$(cksum <"$wheel") $extra"
  if [ "$(cat venv/installed 2>/dev/null)" = "$sum" ]; then return; fi
  rm -f venv/installed
  venv/bin/python -m pip install --quiet --disable-pip-version-check "$wheel${extra:+[$extra]}"
  venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$wheel"
  venv/bin/python -c 'import r1jax.models' || fail "r1jax was installed and cannot be imported"
  echo "$sum" >venv/installed
}

install_gcsfuse() {
  local repository
  if command -v gcsfuse >/dev/null; then return; fi
  repository=gcsfuse-$(lsb_release -cs)
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg |
    sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt $repository main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update
  sudo apt-get -qq install -y gcsfuse
}

# In a folder of this user, so that nothing needs root. A mount whose driver died is taken away first.
mount_bucket() {
  if mountpoint -q bucket && ls bucket >/dev/null 2>&1; then return; fi
  install_gcsfuse
  fusermount -uz bucket 2>/dev/null || true
  mkdir -p bucket
  gcsfuse --implicit-dirs --rename-dir-limit=200000 "$1" bucket
  mountpoint -q bucket || fail "gcsfuse ended without an error, but $PWD/bucket is no mount"
}

install() {
  make_venv
  install_wheel
  printf '%s' "${1-}" >bucket-name
  if [ -n "${1-}" ]; then mount_bucket "$1"; fi
}

# Whether a run, or a process that it left behind, holds the lock.
is_running() { ! flock -n lock true; }

# What would send checkpoints to a disk that is lost with the slice.
check_workdir() {
  local workdir
  workdir=$(cat workdir)
  if [ -s bucket-name ] && ! mountpoint -q bucket; then fail "the bucket is not mounted at $PWD/bucket"; fi
  { mkdir -p "$workdir/logs" && : >"$workdir/logs/.written-$(hostname)"; } || fail "the workdir $workdir cannot be written"
  rm -f "$workdir/logs/.written-$(hostname)"
}

start() {
  if [ "$(attempt)" = "$1" ]; then return; fi
  check_workdir
  exec 9>>lock
  flock -w 5 9 || fail "attempt $(attempt) runs here; nothing is started"
  if [ "$(attempt)" = "$1" ]; then return; fi
  mkdir -p logs
  rm -f exit-code
  printf '%s' "$1" >attempt
  setsid nohup bash host.sh job "$1" </dev/null >>"logs/$1.log" 2>&1 &
  echo "started on $(hostname)"
}

# The run itself, under the lock (file 9). Its log goes to the workdir every 20 s, for the disk may be lost.
job() {
  local arguments=() code=0 child copier
  mapfile -d '' arguments <arguments
  echo $$ >session # setsid made this shell the leader of a process group of its own
  echo "== $(hostname) $(date '+%F %T'): attempt $1"
  (
    set -a
    # shellcheck source=/dev/null
    . ./env
    set +a
    exec venv/bin/python -m r1jax.train "--workdir=$(cat workdir)" "${arguments[@]}"
  ) &
  child=$!
  echo "$child" >pid
  trap 'kill -TERM "$child" 2>/dev/null' TERM INT HUP
  (while sleep "${R1JAX_SAVE_SECONDS:-20}"; do save || true; done) 9>&- >/dev/null 2>&1 &
  copier=$!
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # a signal ends a wait, not the run
  wait "$child" || code=$? # of the run, not of the signal
  kill "$copier" 2>/dev/null || true
  echo "== $(hostname) $(date '+%F %T'): exit code $code"
  save || echo "== the log could not be copied to the workdir"
  echo "$code" >exit-code.part
  mv exit-code.part exit-code
}

status() {
  local state=none code=0
  if [ -n "$(attempt)" ]; then
    if [ -s exit-code ]; then
      state=ended code=$(cat exit-code)
      if is_running; then state=running; fi # a process that it left behind
    elif is_running; then
      state=running
    else
      state=lost
    fi
  fi
  echo "@r1jax $(hostname) $state $code $(attempt)"
}

# Each log under its attempt's and its host's name, whole or not at all.
save() {
  local log target
  if [ -s bucket-name ]; then mountpoint -q bucket; fi
  for log in logs/*.log; do
    if [ ! -e "$log" ]; then continue; fi
    target=$(cat workdir)/$(basename "${log%.log}" | sed 's,^,logs/,')-$(hostname).log
    if cmp -s "$log" "$target"; then continue; fi
    mkdir -p "$(dirname "$target")"
    cp "$log" "$target.part"
    mv "$target.part" "$target"
  done
}

stop() {
  local second
  for ((second = 0; second < ${R1JAX_STOP_SECONDS:-300}; second++)); do
    if ! is_running; then return; fi
    if [ "$second" = 0 ] && [ -s pid ]; then kill -TERM "$(cat pid)" 2>/dev/null || true; fi
    sleep 1
  done
  kill -KILL -- "-$(cat session)" 2>/dev/null || true
  sleep 1
}

log_of() { echo "logs/$(attempt).log"; }

verb=$1
shift
case $verb in
  install | start | job | status | save | stop) "$verb" "$@" ;;
  log) if [ -e "$(log_of)" ]; then tail -c "+$(($1 + 1))" "$(log_of)" | head -c 1000000; fi ;;
  tail) if [ -e "$(log_of)" ]; then tail -n 30 "$(log_of)" | sed "s/^/$(hostname): /"; fi ;;
  *) fail "unknown command $verb" ;;
esac
