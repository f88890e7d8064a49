"""r1jax: reasoning models by reinforcement learning and distillation, in JAX."""

import importlib.metadata as _metadata
import re as _re
import sys as _sys
from typing import TYPE_CHECKING
from typing import Any as _Any

if TYPE_CHECKING:
    from r1jax.api import Model as Model
    from r1jax.api import Run as Run
    from r1jax.api import Sample as Sample
    from r1jax.api import load as load
    from r1jax.api import run as run

__version__ = "0.2.0"

# flax from a release on -> the jax release from which on it no longer imports. pip cannot express it: both are in the
# bounds of setup.py, and it leaves alone what a machine came with.
_BROKEN_PAIRS = (("0.12.10", "0.13"), ("0.12.9", "0.11.2"), ("0", "0.11.1"))


def _find_fault(jax: str, flax: str) -> str:
    """The reason why these releases of jax and flax do not work together, and the cure; "" if they do."""
    order = lambda version: [int(part) for part in _re.findall(r"\d+", version)]
    limit = next(limit for first, limit in _BROKEN_PAIRS if order(flax) >= order(first))
    if order(jax) < order(limit):
        return ""
    return f"jax {jax} and flax {flax} do not work together; pip install 'flax>=0.12.10,<0.13'"


def _check_versions() -> None:
    """Raises ImportError for a pair that cannot work; a command (python -m r1jax.X) ends with one line instead."""
    try:
        fault = _find_fault(_metadata.version("jax"), _metadata.version("flax"))
    except _metadata.PackageNotFoundError:  # the import of it says so
        return
    if fault and _sys.argv[:1] == ["-m"]:
        raise SystemExit(f"error: {fault}")
    if fault:
        raise ImportError(fault)


_check_versions()


_API = ("run", "load", "Model", "Run", "Sample")  # of r1jax/api.py, imported on first use: it imports jax


def __getattr__(name: str) -> _Any:
    if name in _API:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
