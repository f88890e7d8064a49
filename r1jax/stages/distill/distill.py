"""Distillation: a student learns from a teacher, by the method `config.method`.

`traces` is DeepSeek-R1's (arXiv:2501.12948, section 2.4): the teacher's verified and filtered samples become an SFT
set. Each method is a file of this folder, with its own config and run.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from r1jax.core.errors import UserError

# config.method -> module with `CONFIG`, `run(settings, workdir)` and `programs(settings, prompts)`.
METHODS = {
    "traces": "r1jax.stages.distill.traces",
    "logits": "r1jax.stages.distill.logits",
    "on_policy": "r1jax.stages.distill.on_policy",
}


def find_variant(values: Mapping[str, Any]) -> ModuleType:
    """The module of `method`. Raises UserError for a method that METHODS lacks."""
    method = values.get("method")
    if method not in METHODS:
        raise UserError(f"config.method must be one of {', '.join(METHODS)}, got {method!r}")
    return importlib.import_module(METHODS[method])
