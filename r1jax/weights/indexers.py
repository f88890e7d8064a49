"""Fresh indexers of sparse attention for a model whose files have none: DeepSeek-V3.1's weights under a config.json of
V3.2, from which that model was trained.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from r1jax.core.sharding import current_mesh, sharding
from r1jax.models.families.hf_config import Names
from r1jax.models.transformer import Params, logical_axes, merge, split
from r1jax.weights.pieces import Source

PART = "indexer"


def lacks_indexers(config: Any, names: Names, source: Source) -> bool:
    """Whether a config has indexers, and the files no tensor of one."""
    theirs = [name for ours, (name, _) in names.items() if PART in ours and not ours.startswith("mtp.")]
    layers = range(config.num_layers)
    return getattr(config, "index", None) is not None and not any(
        name.format(layer, 0) in source for layer in layers for name in theirs
    )


def add_indexers(params: Params, make: Callable[[], nnx.Module], std: float) -> Any:
    """The model that `make` builds, of `params` and drawn indexers: kernels normal with `std`, norms that change
    nothing.
    """
    model: Any = nnx.eval_shape(make)
    graph, shapes = split(model)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct, axes: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if PART not in name.split("."):
            found: Any = params
            for entry in path:
                found = found[entry.key]
            return found
        place = None if current_mesh() is None else sharding(axes, leaf.shape, name=name)
        key = jax.random.fold_in(jax.random.key(0), zlib.crc32(name.encode()))
        if path[-1].key == "kernel":
            fill = lambda: (std * jax.random.normal(key, leaf.shape, jnp.float32)).astype(leaf.dtype)
        else:
            fill = lambda: jnp.full(leaf.shape, 1 if path[-1].key == "scale" else 0, leaf.dtype)
        return jax.jit(fill, out_shardings=place)()

    return merge(graph, jax.tree_util.tree_map_with_path(draw, shapes, logical_axes(model)))
