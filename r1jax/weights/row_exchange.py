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
    """A parameter's shape and sharding as it is read (`shape`, `between`), its sharding as it is `placed`, and the way
    from one to the other: the mesh axes `copied` are gathered on the array axis `at`, then those of each array axis of
    `moved` change places, and the last axis becomes the axes of sizes `split`.
    """

    shape: tuple[int, ...]
    between: NamedSharding
    placed: NamedSharding
    at: int
    copied: Axes
    moved: tuple[tuple[int, Axes], ...]
    split: tuple[int, ...] = ()


Owner = Callable[[jax.Device], int]


def find_process(device: jax.Device) -> int:
    """The process that a device belongs to."""
    return device.process_index


def find_exchange(
    shape: Sequence[int],
    size: int,
    placed: NamedSharding,
    *,
    lead: int,
    row: int,
    joined: bool = False,
    owner: Owner = find_process,
) -> Exchange | None:
    """The exchange of a parameter of `size` bytes that shares out its rows most; None where each process reads its own
    part as well, or nothing divides.

    lead: number of first axes that index tensors. row: the axis whose parts are rows of a tensor. joined: whether the
    axes after it are rows too. owner: the process of a device.
    """
    mesh = placed.mesh
    assert isinstance(mesh, Mesh)
    crossing = _find_crossing(mesh, owner)
    own = [_names(part) for part in placed.spec] + [()] * (len(shape) - len(placed.spec))
    held = {name for names in own for name in names}
    copies = tuple(name for name in mesh.axis_names if name in crossing and name not in held)
    shape, split = tuple(shape), tuple(shape[row + 1 :])
    if joined and split and not any(own[row + 1 :]):
        shape, own = (*shape[:row], math.prod(shape[row:])), own[: row + 1]
    else:
        split = ()
    columns = [axis for axis in range(lead, len(shape)) if axis != row and crossing & set(own[axis])]
    parts = lambda names: math.prod(mesh.shape[name] for name in names)
    best: Exchange | None = None
    most = 1
    for kept in range(max((len(own[axis]) for axis in columns), default=0) + 1):  # mesh axes that stay on columns
        moved = tuple((axis, own[axis][kept:]) for axis in columns if own[axis][kept:])
        for copied in (copies, ()) if size >= LEAST_BYTES else ((),):  # one order in all processes
            added = (*(name for _, names in moved for name in names), *copied)
            for at in (*range(lead), row):
                if parts(added) > most and shape[at] % parts((*own[at], *added)) == 0:
                    spec = [names[:kept] if axis in columns else names for axis, names in enumerate(own)]
                    spec[at] = (*own[at], *added)
                    between = NamedSharding(mesh, PartitionSpec(*(names or None for names in spec)))
                    best, most = Exchange(shape, between, placed, at, copied, moved, split), parts(added)
    return best


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
        return part.reshape(*part.shape[:-1], -1, *plan.split) if plan.split else part

    mesh, specs = plan.placed.mesh, (plan.between.spec, plan.placed.spec)
    run = jax.shard_map(move, mesh=mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False)
    return jax.jit(run, out_shardings=plan.placed)


def _find_crossing(mesh: Mesh, owner: Owner) -> set[str]:
    """The mesh axes along which the process changes."""
    owners = np.vectorize(owner, otypes=[int])(mesh.devices)
    return {name for axis, name in enumerate(mesh.axis_names) if (owners != owners.take([0], axis)).any()}


def _names(part: str | Axes | None) -> Axes:
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)
