"""The stages by the name that `config.stage` gives: each is a file of this folder with `read_config` and `run`."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from ml_collections import ConfigDict

from r1jax import stages
from r1jax.core.errors import UserError


def find_stage(config: ConfigDict) -> ModuleType:
    """The file whose `run(config, workdir)` does what the config says; jax is imported only here.

    Raises UserError for a stage that is not known.
    """
    known = sorted(module.name for module in pkgutil.iter_modules(stages.__path__))
    name = config.get("stage")
    if name not in known:
        raise UserError(f"config.stage must be one of {', '.join(known)}, got {name!r}")
    module = importlib.import_module(f"{stages.__name__}.{name}")
    if not hasattr(module, "run"):
        raise UserError(f"config.stage={name} is no stage that trains")
    return module
