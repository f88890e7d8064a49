#!/usr/bin/env bash
#
# From a fresh clone to a model that has learned: makes .venv, installs, fetches the demo model, trains it by GRPO.
#
#   bash launch/local.sh                                the main job, configs/grpo_zero.py
#   bash launch/local.sh :template=chat                 the same with arguments of the config (colon first)
#   bash launch/local.sh --config.seed=1 --workdir=DIR  the same with flags of r1jax.train
#   PYTHON=python3.12 bash launch/local.sh              with this Python
#
# Relative paths in the flags are meant from the repository's root. Run again, it goes on where it stopped.

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
help_if_asked "$@"

config=configs/grpo_zero.py
case ${1-} in
  :*)
    config+=$1
    shift
    ;;
esac

set_up
say "python -m r1jax.train --config=$config $*"
seconds_of "training" "$VENV/bin/python" -m r1jax.train --config="$config" "$@"
printf '== all of it: %d s\n' "$SECONDS"
