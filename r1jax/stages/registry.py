"""The table of stages: which file of this folder does what `config.stage` names."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from r1jax.core.errors import UserError

# config.stage -> module with `read_config(config)` and `run(config, workdir)`, imported when the stage is asked for.
STAGES = {
    "sft": "r1jax.stages.sft",
    "grpo": "r1jax.stages.grpo",
    "distill": "r1jax.stages.distill.distill",
    "rejection_sampling": "r1jax.stages.rejection_sampling",
    "synthesize": "r1jax.stages.synthesize",
    "vocabulary": "r1jax.stages.vocabulary",
    "pipeline": "r1jax.stages.pipeline.pipeline",
}

# Former names, which an error translates.
RENAMED = {"collect": "rejection_sampling", "draw": "synthesize"}


def find_stage(name: Any) -> ModuleType:
    """The module of a stage. Raises UserError for a name that STAGES lacks."""
    if name in RENAMED:
        raise UserError(f"config.stage = {name!r} is now called {RENAMED[name]!r}")
    if name not in STAGES:
        raise UserError(f"config.stage must be one of {', '.join(STAGES)}, got {name!r}")
    return importlib.import_module(STAGES[name])
