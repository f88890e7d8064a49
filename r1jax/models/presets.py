"""Published model shapes by name, over all families, and parameter counts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
from flax import nnx

from r1jax.core.errors import UserError
from r1jax.models.families.registry import load_families
from r1jax.models.transformer import split


class Count(NamedTuple):
    """Parameter counts of a model: all except prediction depths, those active per token, those of the prediction
    depths.

    Active parameters exclude unselected experts; the embedding counts as a whole table.
    """

    total: int
    active: int
    ahead: int


def find_preset(name: str) -> tuple[ModuleType, Any]:
    """Family and config of a name such as `qwen2.5_7b`. Raises UserError for an unknown one."""
    presets = {preset: family for family in load_families().values() for preset in family.VARIANTS}
    if name not in presets:
        raise UserError(f"unknown model shape {name!r}; known: {', '.join(sorted(presets))}")
    return presets[name], presets[name].VARIANTS[name]


def replace_sizes(sizes: Any, changes: Mapping[str, Any]) -> Any:
    """The shape with some sizes changed; nested shapes (`latents`, `gate`) take a mapping of their changes.

    Raises UserError for an unknown name, and for a number in place of a nested shape.
    """
    known = {field.name: getattr(sizes, field.name) for field in dataclasses.fields(sizes)}
    if strange := set(changes) - set(known):
        raise UserError(f"config.model.sizes must be among {', '.join(known)}; got {', '.join(sorted(strange))}")
    new: dict[str, Any] = {}
    for name, value in changes.items():
        whole = dataclasses.is_dataclass(known[name])
        if whole and not isinstance(value, Mapping):
            raise UserError(f"config.model.sizes.{name} must map names of its sizes to new values, got {value!r}")
        new[name] = replace_sizes(known[name], value) if whole else value
    return dataclasses.replace(sizes, **new)


def count_parameters(family: ModuleType, config: Any) -> Count:
    """Parameter counts of a shape; makes no array."""
    model = nnx.eval_shape(lambda: family.build(config, rngs=nnx.Rngs(0), scan_layers=True))
    total = active = ahead = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(split(model)[1]):
        keys, size = [entry.key for entry in path], math.prod(leaf.shape)
        if keys[0] == "mtp":
            ahead += size
            continue
        total += size
        active += size * config.active_experts // config.num_experts if "experts" in keys else size
    return Count(total, active, ahead)
