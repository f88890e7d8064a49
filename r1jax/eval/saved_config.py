"""config.json of a workdir: the resolved settings of its run, in every format ever written.

Format 3 has every value, and the number `format`. Format 2 named models by `path` and `hub` (eval/former_models.py).
Format 1, without a number, had the config file's values and the flags: its keys may have former names, and missing keys
had the defaults of its time (commit 5153420).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from r1jax.core.errors import UserError
from r1jax.eval.former_models import SECTIONS, rename_saved

CONFIG_FILE = "config.json"
FORMAT = 3

# Former names of keys and stages, of before version 0.2.0: an error in files and flags, translated in a config.json.
RENAMED = {
    "rollout.limits": "rollout.max_new_tokens_schedule",
    "rollout.temperatures": "rollout.temperature_schedule",
    "sampling.rounds": "dynamic_sampling.max_rounds",
    "sampling.filter_truncated": "dynamic_sampling.filter_truncated",
    "pools": "curriculum",
    "loss.correction": "loss.importance_correction",
    "loss.correction_low": "loss.importance_correction_low",
    "loss.correction_high": "loss.importance_correction_high",
    "train.zero_spread": "train.min_group_std",
}
RENAMED_STAGES = {"collect": "rejection_sampling", "draw": "synthesize"}

# By stage the defaults of format 1 that are no longer today's, by dotted key: there are none so far. A changed default
# belongs here (tests/eval/test_saved_config.py compares all of them).
FORMER_DEFAULTS: dict[str, dict[str, Any]] = {}


class SavedConfig(NamedTuple):
    """Values of a config.json under today's names, and the format it was written in."""

    values: dict[str, Any]
    format: int


def read_config_file(path: Path) -> SavedConfig:
    """Reads a config.json of any format. Raises FileNotFoundError, ValueError for invalid JSON, and UserError for
    anything but an object.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config must be a JSON object, got {type(values).__name__}.")
    number = values.pop("format", 1)
    return SavedConfig(translate(values, number), number)


def translate(values: Mapping[str, Any], number: int = 1) -> dict[str, Any]:
    """Values of a format under today's names, of format 1 with former defaults that have changed; for a pipeline in
    every stage too.
    """
    found = _translate_first(values) if number == 1 else dict(values)
    if number < FORMAT:
        found |= {key: rename_saved(found[key]) for key in SECTIONS if isinstance(found.get(key), Mapping)}
    if found.get("stage") == "pipeline" and isinstance(found.get("stages"), Mapping):
        found["stages"] = {name: translate(section, number) for name, section in found["stages"].items()}
    return found


def _translate_first(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of format 1 in format 2, without the stages of a pipeline."""
    stage = values.get("stage")
    found: dict[str, Any] = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    if stage in RENAMED_STAGES:
        found["stage"] = RENAMED_STAGES[stage]
    for former, new in RENAMED.items():
        section, _, key = former.partition(".")
        if isinstance(found.get(section), dict) and (not key or key in found[section]):
            value = found[section].pop(key) if key else found.pop(section)
            _put(found, new, value)
    if found.get("sampling") == {}:
        del found["sampling"]
    for dotted, value in FORMER_DEFAULTS.get(str(found.get("stage")), {}).items():
        _put(found, dotted, value, keep=True)
    return found


def _put(values: dict[str, Any], dotted: str, value: Any, *, keep: bool = False) -> None:
    """Sets a nested value; `keep` leaves an existing one."""
    *parents, last = dotted.split(".")
    for name in parents:
        values = values.setdefault(name, {})
    if not (keep and last in values):
        values[last] = value
