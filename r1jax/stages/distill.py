"""Distillation: a student learns from a teacher, by the method that `config.method` names.

`traces` is DeepSeek-R1's (arXiv:2501.12948, section 2.4): the teacher's verified and filtered samples become a
supervised set. Each method is a file beside this one, distill_<method>.py, with its own `run(config, workdir)`.
"""

from __future__ import annotations

import importlib
import pathlib
import pkgutil
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from r1jax import stages
from r1jax.core.errors import UserError

PREFIX = "distill_"


def read_config(config: ConfigDict) -> Any:
    """The config as the dataclasses of its method. Raises UserError for whatever is wrong with it."""
    return find_method(config).read_config(config)


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Distils as `config` says."""
    find_method(config).run(config, workdir)


def find_method(config: ConfigDict) -> ModuleType:
    """The file of `config.method`. Raises UserError for an unknown one."""
    names = [module.name for module in pkgutil.iter_modules(stages.__path__)]
    known = sorted(name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))
    method = config.get("method")
    if method not in known:
        raise UserError(f"config.method must be one of {', '.join(known)}, got {method!r}")
    return importlib.import_module(f"{stages.__name__}.{PREFIX}{method}")
