"""Registry of model families: the module that reads each `model_type` of a config.json."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from r1jax.core.errors import UserError

# model_type -> file of this folder, imported on first use.
FAMILIES = {
    "deepseek_v2": "deepseek_v3",
    "deepseek_v3": "deepseek_v3",
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
}


def find_family(model_type: Any, path: Any) -> ModuleType:
    """Module of a `model_type`; `path` is the model's path, for the message.

    Raises UserError for a type that FAMILIES lacks.
    """
    kind = str(model_type or "").lower()
    if kind not in FAMILIES:
        raise UserError(f"{path}: unknown model_type {kind!r}; known: {', '.join(sorted(FAMILIES))}")
    return _load(FAMILIES[kind])


def load_families() -> dict[str, ModuleType]:
    """Modules of all families by file name."""
    return {name: _load(name) for name in sorted(set(FAMILIES.values()))}


def _load(file: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{file}")
