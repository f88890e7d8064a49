"""Weights from files into place, driven by a family's table of names.

A table maps each parameter of ours (a dotted path, `{}` for the layer) to the tensor's name in the Hugging Face files
and to how many of our leading axes are the input side of their [out, in] matrix (None: the same array in both).
Tensors are read one at a time, turned, cast and placed on their shards before the next is read, so host memory stays
near the largest tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from r1jax.core.distributed import put_global
from r1jax.core.errors import UserError
from r1jax.core.sharding import sharding
from r1jax.models.rope import RopeScaling, YaRN
from r1jax.models.transformer import Params, logical_axes, merge, split

Names = Mapping[str, tuple[str, int | None]]


class Source(Protocol):
    """Tensors by their Hugging Face names."""

    path: Any

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str) -> np.ndarray: ...


def read_rope(hf: Mapping[str, Any]) -> tuple[float, RopeScaling | YaRN | None]:
    """(theta, scaling) from `rope_scaling` (hub files) or `rope_parameters` (newer files)."""
    parameters = hf.get("rope_parameters") or {}
    scaling = parameters if parameters else hf.get("rope_scaling") or {}
    theta = parameters.get("rope_theta", hf.get("rope_theta", 10_000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", scaling["factor"])
    if kind == "llama3":
        return theta, RopeScaling(
            "llama3",
            scaling["factor"],
            scaling["low_freq_factor"],
            scaling["high_freq_factor"],
            scaling["original_max_position_embeddings"],
        )
    if kind == "yarn":
        original = scaling["original_max_position_embeddings"]
        return theta, YaRN(
            scaling.get("factor") or hf["max_position_embeddings"] / original,
            original,
            scaling.get("beta_fast") or 32,
            scaling.get("beta_slow") or 1,
            scaling.get("mscale") or 0.0,
            scaling.get("mscale_all_dim") or 0.0,
            scaling.get("attention_factor"),
            scaling.get("truncate", True),
        )
    raise UserError(f"rope scaling {kind!r} is not known; known: default, linear, llama3, yarn")


def load_weights(make: Callable[[], nnx.Module], names: Names, source: Source) -> Any:
    """The model that `make` describes (never run with arrays), its weights read from `source`, each straight to its
    place.

    Raises UserError that names file and tensor for a missing one or a wrong shape.
    """
    model: Any = nnx.eval_shape(make)
    graph, shapes = split(model)
    axes = logical_axes(model)

    def load(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        keys = [entry.key for entry in path]
        placed = sharding(_get(axes, keys), leaf.shape, name=".".join(map(str, keys)))
        if keys[0] == "stacks":
            first = sum(model.counts[: keys[1]])
            rows = [
                _read(source, names, ["layers", first + i, *keys[2:]], leaf.shape[1:]) for i in range(leaf.shape[0])
            ]
            array = np.stack(rows)
        else:
            array = _read(source, names, keys, leaf.shape)
        return put_global(np.ascontiguousarray(array, leaf.dtype), placed)

    return merge(graph, jax.tree_util.tree_map_with_path(load, shapes))


def _read(source: Source, names: Names, keys: list, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor in our shape."""
    path = ".".join("{}" if isinstance(key, int) else key for key in keys)
    layer = [key for key in keys if isinstance(key, int)]
    theirs, inputs = names[path]
    theirs = theirs.format(*layer)
    if theirs not in source:
        raise UserError(f"{source.path}: no tensor {theirs!r}, which the model needs")
    want = shape
    if inputs is not None:
        want = (int(np.prod(shape[inputs:])), int(np.prod(shape[:inputs])))
    if tuple(source.shape(theirs)) != tuple(want):
        raise UserError(f"{source.path}: tensor {theirs!r} has shape {source.shape(theirs)}, the model needs {want}")
    array = source.read(theirs)
    return array if inputs is None else array.T.reshape(shape)


def _get(tree: Params, keys: list) -> Any:
    for key in keys:
        tree = tree[key]
    return tree
