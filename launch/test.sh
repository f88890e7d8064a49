#!/usr/bin/env bash
#
# The tests, from a fresh clone on: the set-up of local.sh with the development tools, then pytest.
#
#   bash launch/test.sh                       everything but the slow tests
#   bash launch/test.sh -m slow               the slow tests
#   bash launch/test.sh tests/rewards -k tag  any arguments of pytest

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
help_if_asked "$@"

set_up dev
find_bubblewrap
seconds_of "tests" "$VENV/bin/python" -m pytest -q "$@"
