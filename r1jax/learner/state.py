"""Training state: parameters, optimizer moments, number of updates. Made shape-first and placed by logical axes.

Moments have their parameter's shape and placement: a moment's path ends in its parameter's path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from r1jax.core.sharding import is_abstract, replicated, sharding
from r1jax.learner.offload import HOST, find_hosted
from r1jax.models.transformer import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """params and opt_state are pytrees of arrays; updates is an int32 scalar."""

    params: Params
    opt_state: Any
    updates: jax.Array


def init_state(params: Params, axes: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state around loaded parameters; moments are created in place, with their parameters' shardings. Around
    abstract parameters it is `abstract_state`.
    """
    if is_abstract(params):
        return abstract_state(params, axes, optimizer)

    def make(params: Params) -> tuple[Any, jax.Array]:
        return optimizer.init(params), jnp.zeros((), jnp.int32)

    opt_state, updates = jax.jit(make, out_shardings=_place(make, params, axes))(params)
    return TrainState(params, opt_state, updates)


def abstract_state(params: Params, axes: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes with shardings of the whole state; no arrays are made."""

    def make(params: Params) -> TrainState:
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    shapes = jax.eval_shape(make, params)
    with_place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    if (places := _place(make, params, axes)) is None:
        return shapes
    return jax.tree.map(with_place, shapes, places)


def state_places(params: Params, axes: Params, optimizer: optax.GradientTransformation) -> TrainState | None:
    """The shardings of the whole state; None without a mesh."""
    if replicated() is None:
        return None
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_state(params, axes, optimizer))


def _place(make: Callable[[Params], Any], params: Params, axes: Params) -> Any:
    """A sharding for every array that `make` returns: that of the parameter whose path ends its own, else replicated,
    in the memory kind that `make` uses; None without a mesh.
    """
    everywhere = replicated()
    if everywhere is None:
        return None
    flat = jax.tree_util.tree_flatten_with_path(axes, is_leaf=lambda x: isinstance(x, tuple))[0]
    by_path = {tuple(map(str, path)): value for path, value in flat}

    def place(path: tuple, leaf: Any, hosted: bool) -> Any:
        keys = tuple(map(str, path))
        for start in range(len(keys)):
            if (found := by_path.get(keys[start:])) is not None and len(found) == leaf.ndim:
                placed = sharding(found, leaf.shape, name=".".join(keys))
                return placed.with_memory_kind(HOST) if hosted and placed is not None else placed
        return everywhere

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(make, params), find_hosted(make, params))
