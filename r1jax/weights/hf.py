"""Loading of Hugging Face tensors into parameters, driven by a family's table of names.

A table maps each of our parameters (a dotted path, `{}` for an index) to the tensor's name in the Hugging Face files
and to the number of our leading axes that form the input side of their [out, in] matrix (0: theirs is a vector; None:
both arrays are equal). Where their name has more indices than our path, ours is a stack whose first axis is their extra
index (experts). Prediction depth i is their layer num_layers + i.

Tensors are read one at a time; each is transposed, cast and copied into this process's shards before the next is read.
Beyond the shards, host memory holds one tensor, however many form a stacked parameter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from r1jax.core.errors import UserError
from r1jax.core.sharding import sharding
from r1jax.models.families.hf_config import Names
from r1jax.models.transformer import Params, logical_axes, merge, split


class Source(Protocol):
    """Tensors by their Hugging Face names."""

    path: Any

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> np.dtype: ...

    def read(self, name: str) -> np.ndarray: ...


def load_weights(make: Callable[[], nnx.Module], names: Names, source: Source) -> Any:
    """The model that `make` builds (traced only, never run with arrays), with weights read from `source` straight into
    their shards.

    Raises UserError, naming file and tensor, for a missing tensor or a wrong shape.
    """
    model: Any = nnx.eval_shape(make)
    graph, shapes = split(model)
    axes = logical_axes(model)

    def load(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        keys = [entry.key for entry in path]
        placed = sharding(_get(axes, keys), leaf.shape, name=".".join(map(str, keys)))
        lead, pieces = find_pieces(keys, leaf.shape, names, model.counts)
        tensors = ((at, _read(source, name, inputs, leaf.shape[lead:])) for at, name, inputs in pieces)
        return _assemble(tensors, leaf, placed)

    return merge(graph, jax.tree_util.tree_map_with_path(load, shapes))


Piece = tuple[tuple[int, ...], str, int | None]


def find_pieces(
    keys: Sequence[Any], shape: Sequence[int], names: Names, counts: Sequence[int]
) -> tuple[int, list[Piece]]:
    """Number of leading axes of a parameter that index tensors, and for each tensor its index on those axes, its name
    in the files, and its `inputs` of the table.

    keys, shape: of the parameter in either layout; counts: number of layers in each group of the model.
    """
    numbers, rest = [[key] for key in keys if isinstance(key, int)], list(keys)
    stacked = keys[0] == "stacks"
    if stacked:
        first, rest = sum(counts[: keys[1]]), ["layers", *keys[1:]]
        numbers[0] = list(range(first, first + shape[0]))
    elif keys[0] == "mtp":
        numbers[0] = [sum(counts) + keys[1]]
    theirs, inputs = names[".".join("{}" if isinstance(key, int) else key for key in rest)]
    lead = int(stacked)
    while theirs.count("{}") > len(numbers):
        numbers.append(list(range(shape[lead])))
        lead += 1
    places = itertools.product(*(range(size) for size in shape[:lead]))
    filled = [theirs.format(*chosen) for chosen in itertools.product(*numbers)]
    return lead, [(place, name, inputs) for place, name in zip(places, filled, strict=True)]


def _read(source: Source, name: str, inputs: int | None, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor in our shape, as a view of the source's array."""
    check_tensor(source, name, matrix_shape(shape, inputs))
    array = source.read(name)
    return array if inputs is None else array.T.reshape(shape)


def matrix_shape(shape: tuple[int, ...], inputs: int | None) -> tuple[int, ...]:
    """Shape in the files of a tensor of ours."""
    if inputs is None:
        return shape
    sides = (math.prod(shape[inputs:]), math.prod(shape[:inputs]))
    return sides if inputs else sides[:1]


def check_tensor(source: Source, name: str, shape: tuple[int, ...]) -> None:
    """Raises UserError unless the source has this tensor with this shape."""
    if name not in source:
        raise UserError(f"{source.path}: no tensor {name!r}, which the model needs")
    if tuple(source.shape(name)) != tuple(shape):
        raise UserError(f"{source.path}: tensor {name!r} has shape {source.shape(name)}, the model needs {shape}")


def _assemble(
    tensors: Iterator[tuple[tuple[int, ...], np.ndarray]], leaf: jax.ShapeDtypeStruct, placed: NamedSharding | None
) -> jax.Array:
    """The parameter built from its tensors, each at its index on the leading axes."""
    everything = tuple(slice(0, size) for size in leaf.shape)
    wanted = [everything] if placed is None else list(placed.addressable_devices_indices_map(leaf.shape).values())
    indices = {_bounds(index, leaf.shape): None for index in wanted}
    shards = {bounds: _allocate([stop - start for start, stop in bounds], leaf.dtype) for bounds in indices}
    for place, tensor in tensors:
        lead = len(place)
        for bounds, shard in shards.items():
            if all(start <= at < stop for at, (start, stop) in zip(place, bounds, strict=False)):
                at = tuple(i - start for i, (start, _) in zip(place, bounds, strict=False))
                shard[at] = tensor[tuple(slice(*pair) for pair in bounds[lead:])]
    if placed is None:
        return jax.device_put(shards.popitem()[1], may_alias=True)
    return jax.make_array_from_callback(leaf.shape, placed, lambda index: shards[_bounds(index, leaf.shape)])


def _bounds(index: Any, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(start, stop) on every axis of a shard's index."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _allocate(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array aligned to 64 bytes, which XLA:CPU uses without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _get(tree: Params, keys: list) -> Any:
    for key in keys:
        tree = tree[key]
    return tree
