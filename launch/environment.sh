# shellcheck shell=bash
#
# What local.sh, gpu.sh and test.sh share: a Python that runs, .venv, the packages, the demo model. To be sourced; then
#
#   set_up [EXTRA]             leaves .venv with r1jax[EXTRA] in it, and the demo model in models/ where it can be had
#   seconds_of NAME COMMAND…   runs a command and says how long it took
#   find_bubblewrap            installs bubblewrap, if that is easy, or says what will be missing without it
#   help_if_asked "$@"         prints the first comment of the script and ends, where one of the arguments is --help
#
# bash launch/environment.sh install EXTRA does the first part alone: .venv, and r1jax[EXTRA] in it.
#
# Everything that is already done is left alone, so a second run takes a second. PYTHON=… picks the interpreter.

set -euo pipefail
trap 'exit 130' INT # also where the command that runs makes an ordinary failure of it, as pip does
trap 'exit 143' TERM

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv
cd "$ROOT"

# Before anything is done. The arguments of a script are those of a program behind it, so --help may stand anywhere.
help_if_asked() {
  local argument
  for argument; do
    case $argument in -h | --help)
      sed -n '3,/^$/{s/^# \{0,1\}//;p;}' "$0"
      exit 0
      ;;
    esac
  done
}

say() { printf '\n== %s\n' "$*"; }

seconds_of() {
  local name=$1 start=$SECONDS
  shift
  "$@"
  printf '== %s: %d s\n' "$name" $((SECONDS - start))
}

# Prints the real path and the version of an interpreter, or fails: a pyenv shim may exist and have nothing behind it,
# and Debian ships a python3 without ensurepip. Keep the range in step with python_requires in setup.py.
probe() {
  "$1" -c '
import sys
import ensurepip, ssl, venv
if not (3, 11) <= sys.version_info[:2] < (3, 14):
    raise SystemExit(1)
print(sys.executable, "%d.%d" % sys.version_info[:2])' </dev/null 2>/dev/null
}

# The interpreters to try: 3.12 and 3.13 have the newest jax that is tested here, whose decoding is faster than what 3.11
# gets; of each version the bare name first, which may be a pyenv shim with nothing behind it, then pyenv's own folders,
# the newest patch first; names without a version, which may be anything, last.
candidates() {
  local version
  for version in 3.12 3.13 3.11; do
    echo "python$version"
    printf '%s\n' "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python | sort -rV
  done
  printf '%s\n' python3 python
}

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    probe "$PYTHON" && return
    echo "error: PYTHON=$PYTHON does not run as a Python >= 3.11, < 3.14 with venv and pip" >&2
    return 1
  fi
  while read -r candidate; do
    probe "$candidate" && return
  done < <(candidates)
  echo "error: found no Python >= 3.11, < 3.14 that runs (with venv and pip); name one: PYTHON=/path/to/python" >&2
  return 1
}

# Keeps a .venv that runs, was made in this very place (its scripts hold absolute paths) and has the version that PYTHON
# asks for, if it asks; else makes it anew.
make_venv() {
  local found present=
  if grep -qsF "$VENV" "$VENV/pyvenv.cfg"; then present=$(probe "$VENV/bin/python") || present=; fi
  if [ -n "$present" ] && [ -z "${PYTHON:-}" ]; then return; fi
  found=$(find_python)
  if [ "${present##* }" = "${found##* }" ]; then return; fi
  say "making .venv with Python ${found##* } (${found% *})"
  rm -rf "$VENV"
  "${found% *}" -m venv "$VENV"
}

# Byte code is left to the first import, which compiles a tenth of it. -qq: errors only.
pip_install() {
  "$VENV/bin/python" -m pip install --disable-pip-version-check --no-compile -qq --editable "$1"
}

# Installs r1jax[EXTRA,reasoning-gym], unless that was done from the same setup.py; `dev` holds what no extra has, and
# nothing of the others (CUDA). Where reasoning-gym cannot be had (a part of it has to be compiled) the rest is still
# worth having.
install() {
  local extra=${1:-} stamp=$VENV/installed${1:+-$1} stamps wanted
  wanted=$(cksum <setup.py)
  stamps=("$stamp")
  if [ -z "$extra" ]; then stamps+=("$VENV"/installed-*); fi # with any extra the package itself is there
  if grep -qsxF "$wanted" "${stamps[@]}"; then return; fi
  say "installing the packages (about 900 MB on disk)"
  if pip_install ".[${extra:+$extra,}reasoning-gym]"; then
    echo "$wanted" >"$stamp"
  else
    say "trying without reasoning-gym, whose tasks will be missing"
    pip_install ".${extra:+[$extra]}"
  fi
}

# Code rewards run programs in bubblewrap and refuse to go without. Where it is missing and we may install, we try.
find_bubblewrap() {
  if ! command -v bwrap >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get install -y bubblewrap || { apt-get update && apt-get install -y bubblewrap; }; } >/dev/null 2>&1 || true
  fi
  command -v bwrap >/dev/null ||
    say "no bubblewrap here (apt-get install bubblewrap): code rewards will refuse to run, and their tests are skipped"
}

fetch_demo() {
  "$VENV/bin/python" launch/fetch_demo.py || echo "the demo model could not be fetched; going on without it"
}

# The model comes down while pip works. It gets a process group of its own (set -m), so that it ends with this script.
set_up() {
  local log fetching
  seconds_of "Python" make_venv
  log=$(mktemp)
  set -m
  seconds_of "demo model, meanwhile" fetch_demo >"$log" 2>&1 &
  fetching=$!
  set +m
  # shellcheck disable=SC2064  # expanded now, while the names are known
  trap "kill -- -$fetching 2>/dev/null; rm -f '$log'" EXIT
  seconds_of "packages" install "$@"
  wait "$fetching"
  cat "$log"
  rm -f "$log"
  trap - EXIT
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  help_if_asked "$@"
  if [ "${1-}" != install ] || [ $# -gt 2 ]; then
    echo "error: this file is to be sourced, or called as: bash launch/environment.sh install [EXTRA]" >&2
    exit 2
  fi
  make_venv
  install "${2-}"
fi
