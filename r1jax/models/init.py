"""Initialization of a model on the mesh: each device draws its own shards, so no host holds the whole model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from r1jax.core.sharding import current_mesh, sharding
from r1jax.models.transformer import logical_axes, merge, split


def init_weights(make: Callable[[], nnx.Module]) -> Any:
    """Builds the model of `make` with fresh weights on the current mesh."""
    model = nnx.eval_shape(make)
    graph, shapes = split(model)
    places = None
    if current_mesh() is not None:
        place = lambda path, leaf, axes: sharding(axes, leaf.shape, name=jax.tree_util.keystr(path))
        places = jax.tree_util.tree_map_with_path(place, shapes, logical_axes(model))
    return merge(graph, jax.jit(lambda: split(make())[1], out_shardings=places)())
