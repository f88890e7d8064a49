"""A parameter in the making: the shards of this process in host memory, filled part by part, then placed on devices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from r1jax.weights.row_exchange import Exchange, exchange

Box = tuple[tuple[int, int], ...]  # (start, stop) on every axis


class Target:
    """A parameter of the shape and dtype of `leaf`, sharded as `placed` (None: whole, on one device), or read as
    `plan` says and exchanged.

    `boxes`: the parts that this process fills, each once, however many of its devices hold it.
    """

    def __init__(self, leaf: jax.ShapeDtypeStruct, placed: NamedSharding | None, plan: Exchange | None = None):
        self.shape, self.dtype = tuple(leaf.shape) if plan is None else plan.shape, np.dtype(leaf.dtype)
        self._plan, self._sharding = plan, placed if plan is None else plan.between
        self.boxes = find_boxes(self.shape, self._sharding, None)
        self._shards: dict[Box, np.ndarray] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that the parts take."""
        return sum(count(box) for box in self.boxes) * self.dtype.itemsize

    def allocate(self) -> None:
        """Makes room for the parts."""
        self._shards = {box: _allocate([stop - start for start, stop in box], self.dtype) for box in self.boxes}

    def needs(self, box: Box) -> bool:
        """Whether a part of the parameter is, to some part, one of this process."""
        return any(_overlap(box, mine) is not None for mine in self.boxes)

    def put(self, box: Box, values: np.ndarray) -> None:
        """Copies values, of the parameter's part `box`, to where they belong; cast to the parameter's dtype."""
        for mine, shard in self._shards.items():
            common = _overlap(box, mine)
            if common is not None:
                shard[_slices(common, mine)] = values[_slices(common, box)]

    def finish(self) -> jax.Array:
        """The parameter on the devices; the host's parts are given up."""
        shards, self._shards = self._shards, {}
        if self._sharding is None:
            return jax.device_put(shards.popitem()[1], may_alias=True)
        array = jax.make_array_from_callback(
            self.shape, self._sharding, lambda index: shards[_bounds(index, self.shape)]
        )
        return array if self._plan is None else exchange(array, self._plan)


def find_boxes(
    shape: Sequence[int], sharding: NamedSharding | None, devices: Iterable[jax.Device] | None
) -> tuple[Box, ...]:
    """The parts of an array that `devices` hold (None: those of this process), each once."""
    if sharding is None:
        return (tuple((0, size) for size in shape),)
    if devices is None:
        indices = sharding.addressable_devices_indices_map(tuple(shape))
    else:
        everywhere = sharding.devices_indices_map(tuple(shape))
        indices = {device: everywhere[device] for device in devices}
    return tuple(dict.fromkeys(_bounds(index, shape) for index in indices.values()))


def count(box: Box) -> int:
    """Elements in a part."""
    total = 1
    for start, stop in box:
        total *= stop - start
    return total


def _overlap(box: Box, other: Box) -> Box | None:
    common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, other, strict=True))
    return common if all(start < stop for start, stop in common) else None


def _slices(box: Box, inside: Box) -> tuple[slice, ...]:
    """Where a part lies in an array that is another part."""
    return tuple(slice(start - first, stop - first) for (start, stop), (first, _) in zip(box, inside, strict=True))


def _bounds(index: Any, shape: Sequence[int]) -> Box:
    """(start, stop) on every axis of a shard's index."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _allocate(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array aligned to 64 bytes, which XLA:CPU uses without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
