"""Registry of stages: the module and the settings of each `config.stage`."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from r1jax.core.errors import UserError
from r1jax.core.resolution import Resolved, resolve
from r1jax.core.sections import flatten, to_values
from r1jax.core.sinks.trackers import TRACKERS
from r1jax.eval.former_models import accept_former
from r1jax.eval.saved_config import RENAMED, RENAMED_STAGES

log = logging.getLogger(__name__)

# config.stage -> module, imported on first use. It has `CONFIG`, the dataclass of a run's settings with a method
# `check()` for impossible combinations, `run(settings, workdir)`, and `programs(settings, prompts)` if it computes on
# accelerators; or `find_variant(values)`, which returns such a module.
STAGES = {
    "sft": "r1jax.stages.sft",
    "grpo": "r1jax.stages.grpo",
    "distill": "r1jax.stages.distill.distill",
    "dpo": "r1jax.stages.preferences.dpo",
    "reward_model": "r1jax.stages.preferences.reward_model",
    "rejection_sampling": "r1jax.stages.rejection_sampling",
    "synthesize": "r1jax.stages.synthesize",
    "vocabulary": "r1jax.stages.vocabulary",
    "pipeline": "r1jax.stages.pipeline.pipeline",
}


def find_stage(values: Mapping[str, Any]) -> ModuleType:
    """The module for `stage` (and `method`) of a run's values. Raises UserError for a name that STAGES lacks."""
    name = values.get("stage")
    if name in RENAMED_STAGES:
        raise UserError(f"config.stage = {name!r} is now called {RENAMED_STAGES[name]!r}")
    if name not in STAGES:
        raise UserError(f"config.stage must be one of {', '.join(STAGES)}, got {name!r}")
    module = importlib.import_module(STAGES[name])
    return module.find_variant(values) if hasattr(module, "find_variant") else module


def stage_of(settings: Any) -> ModuleType:
    """The module that runs these settings."""
    return find_stage({"stage": settings.stage, "method": getattr(settings, "method", None)})


def find_trackers(settings: Any) -> dict[str, str]:
    """Key of the config -> package, for each tracker of metrics that a run or one of its stages writes to."""
    values = flatten(to_values(settings))
    names = {key: key.rpartition(".")[2].removesuffix("_project") for key, value in values.items() if value}
    return {
        f"config.{key}": name for key, name in names.items() if key.endswith(f"log.{name}_project") and name in TRACKERS
    }


def resolve_run(config: Mapping[str, Any] | ConfigDict, flags: Mapping[str, str] | None = None) -> Resolved[Any]:
    """Checked settings from a config file's values and flags (dotted key -> text).

    Raises UserError for an unknown stage or key, a value of a wrong type, and an impossible combination.
    """
    resolved = resolve_values(config, flags)
    resolved.settings.check()
    for key, value in flatten(to_values(resolved.settings)).items():
        if isinstance(value, float) and math.isnan(value):  # passes most comparisons of the checks above
            raise UserError(f"config.{key} must be a number, got nan")
    return resolved


def resolve_values(config: Mapping[str, Any] | ConfigDict, flags: Mapping[str, str] | None = None) -> Resolved[Any]:
    """Like `resolve_run`, without the check for impossible combinations."""
    config, flags, warnings = accept_former(config, flags or {})
    for line in warnings:
        log.warning(line)
    module = find_stage({key: flags.get(key, config.get(key)) for key in ("stage", "method")})
    if hasattr(module, "resolve"):  # its settings contain those of other stages
        return module.resolve(config, flags)
    return resolve(module.CONFIG, config, flags, renamed=RENAMED)
