"""Distillation: a student learns from a teacher, by the method that `config.method` names.

`traces` is DeepSeek-R1's (arXiv:2501.12948, section 2.4): the teacher's verified and filtered samples become a
supervised set. Each method is a file of this folder, with its own `run(config, workdir)`.
"""

from __future__ import annotations

import importlib
import pathlib
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from r1jax.core.errors import UserError

# config.method -> module with `read_config(config)` and `run(config, workdir)`.
METHODS = {
    "traces": "r1jax.stages.distill.traces",
    "logits": "r1jax.stages.distill.logits",
    "on_policy": "r1jax.stages.distill.on_policy",
}


def read_config(config: ConfigDict) -> Any:
    """The config as the dataclasses of its method. Raises UserError for whatever is wrong with it."""
    return find_method(config).read_config(config)


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Distils as `config` says."""
    find_method(config).run(config, workdir)


def find_method(config: ConfigDict) -> ModuleType:
    """The module of `config.method`. Raises UserError for a method that METHODS lacks."""
    method = config.get("method")
    if method not in METHODS:
        raise UserError(f"config.method must be one of {', '.join(METHODS)}, got {method!r}")
    return importlib.import_module(METHODS[method])
