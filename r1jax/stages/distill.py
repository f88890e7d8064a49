"""Distillation: a student learns from a teacher, by the method that `config.method` names.

`traces` is DeepSeek-R1's (arXiv:2501.12948, section 2.4): the teacher's verified and filtered samples become a
supervised set. Each method is a file beside this one, distill_<method>.py, with its own `run(config, workdir)`.
"""

from __future__ import annotations

import importlib
import pathlib
import pkgutil

from ml_collections import ConfigDict

from r1jax import stages
from r1jax.core.errors import UserError

PREFIX = "distill_"


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Distils as `config` says. Raises UserError for an unknown method."""
    names = [module.name for module in pkgutil.iter_modules(stages.__path__)]
    known = sorted(name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))
    method = config.get("method")
    if method not in known:
        raise UserError(f"config.method must be one of {', '.join(known)}, got {method!r}")
    importlib.import_module(f"{stages.__name__}.{PREFIX}{method}").run(config, workdir)
