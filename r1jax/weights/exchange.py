"""Exchange of weights between processes: each reads other parts than its devices hold, and devices pass them on.

Files store a matrix row by row. Where devices of several processes hold columns of it, or copies, each process would
read all of its rows and keep a part of each. So rows are read by one process each, whatever the layout, and a program
on the devices moves them to where they belong: over the links between chips, which are faster than any storage. Every
byte of a model is then read about once by all processes together. Values are moved, never changed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LEAST_BYTES = 1 << 20  # of a parameter whose copies are passed on: a smaller one is read by every process

Axes = tuple[str, ...]


class Exchange(NamedTuple):
    """A parameter's sharding as it is read (`between`) and as it is `placed`, and the way from one to the other: the
    mesh axes `copied` are gathered on the array axis `at`, then those of each array axis of `moved` change places.
    """

    between: NamedSharding
    placed: NamedSharding
    at: int
    copied: Axes
    moved: tuple[tuple[int, Axes], ...]


Owner = Callable[[jax.Device], int]


def find_process(device: jax.Device) -> int:
    """The process that a device belongs to."""
    return device.process_index


def find_exchange(
    shape: Sequence[int], size: int, placed: NamedSharding, *, lead: int, row: int, owner: Owner = find_process
) -> Exchange | None:
    """The exchange of a parameter of `size` bytes; None where each process reads its own part as well, or nothing
    divides.

    lead: number of first axes that index tensors. row: the axis whose parts are rows of a tensor. owner: the process of
    a device.
    """
    mesh = placed.mesh
    assert isinstance(mesh, Mesh)
    crossing = _find_crossing(mesh, owner)
    if not crossing:
        return None
    own = [_names(part) for part in placed.spec] + [()] * (len(shape) - len(placed.spec))
    columns = [axis for axis in range(lead, len(shape)) if axis != row]
    moved = tuple((axis, own[axis]) for axis in columns if crossing & set(own[axis]))
    held = {name for names in own for name in names}
    copies = tuple(name for name in mesh.axis_names if name in crossing and name not in held)
    for copied in (copies, ()) if size >= LEAST_BYTES else ((),):
        added = (*(name for _, names in moved for name in names), *copied)
        for at in (*range(lead), row) if added else ():
            names = (*own[at], *added)
            if shape[at] % math.prod(mesh.shape[name] for name in names) == 0:
                spec = [() if axis in dict(moved) else part for axis, part in enumerate(own)]
                spec[at] = names
                between = NamedSharding(mesh, PartitionSpec(*(part or None for part in spec)))
                return Exchange(between, placed, at, copied, moved)
    return None


def exchange(array: jax.Array, plan: Exchange) -> jax.Array:
    """The array of `plan.between`, as it is to be placed. Every process must call this."""
    return _compile(plan)(array)


@functools.cache
def _compile(plan: Exchange) -> jax.stages.Wrapped:
    def move(part: jax.Array) -> jax.Array:
        if plan.copied:
            part = jax.lax.all_gather(part, plan.copied, axis=plan.at, tiled=True)
        for axis, names in reversed(plan.moved):
            part = jax.lax.all_to_all(part, names, split_axis=axis, concat_axis=plan.at, tiled=True)
        return part

    mesh, specs = plan.placed.mesh, (plan.between.spec, plan.placed.spec)
    run = jax.shard_map(move, mesh=mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False)
    return jax.jit(run, out_shardings=plan.placed)


def _find_crossing(mesh: Mesh, owner: Owner) -> set[str]:
    """The mesh axes along which the process changes."""
    owners = np.vectorize(owner, otypes=[int])(mesh.devices)
    return {name for axis, name in enumerate(mesh.axis_names) if (owners != owners.take([0], axis)).any()}


def _names(part: str | Axes | None) -> Axes:
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)
