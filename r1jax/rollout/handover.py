"""Hand-over of weights from the layout of training to that of rollouts, by one compiled program.

Every array has a plan of exchanges between devices, worked out from its two shardings alone: parts that a device drops
are cut off first, parts that change their dimension travel by all-to-all, and only what has to lie at more devices is
gathered, in the dtype of rollouts. Nothing passes through a host, and no array is whole anywhere unless it lies so.

The devices of both layouts are in the same order. Their meshes are read as one mesh of finer axes where the axes of one
split those of the other; where they do not, XLA chooses the exchanges.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from r1jax.core.sharding import Layout, list_leaves, partition, use_layout
from r1jax.core.structs import Program
from r1jax.models.dispatch import Dispatch
from r1jax.models.experts import MoE
from r1jax.models.layers import Dtypes
from r1jax.models.transformer import Params, logical_axes, merge, split
from r1jax.rollout.layout import Weights

BUFFER_FACTOR = 1.25  # of the experts' buffers over the mean load

Places = tuple[tuple[str, ...], ...]  # mesh axes of each dimension, from the outermost


class Move(NamedTuple):
    """An exchange along one axis of the fine mesh: dimension `source` is gathered, `target` is split (-1: none)."""

    axis: str
    source: int
    target: int


class Handover:
    """The weights of a model in training as the engine samples from them.

    graph, params: of the model in training, arrays or shapes. training, rollout: layouts. dtype: of computation in
    rollouts ("": the model's own). In the layout of training and with its dtype nothing changes hands:
    graph and weights are the same objects.

    graph: structure of the model that samples. layout: of rollouts.
    """

    def __init__(self, graph: nnx.GraphDef, params: Params, training: Layout, rollout: Layout, dtype: str):
        self.training, self.layout = training, rollout
        model = merge(graph, params)
        own, axes = model.dtypes.compute, logical_axes(model)
        self.is_identity = rollout == training and dtype in ("", own)
        self.graph = graph if self.is_identity else fit_graph(graph, params, dtype or own)
        self.weights = find_weights(params, axes, dtype or own)
        self._fine = refine(training.mesh, rollout.mesh) if training.mesh and rollout.mesh else None
        self._plans = self._make_plans()
        self._within = training if self._fine is None else Layout(self._fine.mesh)
        self._program = jax.jit(self._convert, out_shardings=self._places())

    def __call__(self, params: Params) -> Params:
        """The weights in the layout of rollouts, for those of training."""
        if self.is_identity:
            return params
        with use_layout(self._within):
            return self._program(_without_depths(params))

    def shapes(self, params: Params) -> Params:
        """Shapes with shardings of the weights that sample, for shapes of those in training."""
        return params if self.is_identity else self.weights.place(self.layout)

    def programs(self, params: Params) -> list[Program]:
        """The program `weights`, where weights change hands, for shapes of those in training."""
        if self.is_identity:
            return []
        return [Program("weights", self._program, (_without_depths(params),), 0.0, layout=self._within)]

    def _places(self) -> Any:
        if self.layout.mesh is None:
            return None
        return jax.tree.map(lambda x: x.sharding, self.weights.place(self.layout))

    def _convert(self, params: Params) -> Params:
        cast = jax.tree.map(lambda x, shape: x.astype(shape.dtype), params, self.weights.shapes)
        if self._fine is None:
            return cast
        mesh, plans = self._fine.mesh, self._plans

        def exchange(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            return tuple(_follow(x, *plan) for x, plan in zip(arrays, plans, strict=True))

        before, after = ([PartitionSpec(*places) for places in side] for side in zip(*plans, strict=True))
        run = jax.shard_map(exchange, mesh=mesh, in_specs=tuple(before), out_specs=tuple(after), check_vma=False)
        flat: list[jax.Array] = jax.tree.leaves(cast)
        place = lambda x, spec: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
        moved = run(*(place(x, spec) for x, spec in zip(flat, before, strict=True)))
        return jax.tree.unflatten(jax.tree.structure(params), moved)

    def _make_plans(self) -> list[tuple[Places, Places]]:
        """The places of each array in both layouts, in the axes of the fine mesh."""
        if (fine := self._fine) is None:
            return []
        return [
            (
                find_places(self.training, axes, x.shape, fine.source),
                find_places(self.layout, axes, x.shape, fine.target),
            )
            for x, axes in list_leaves(self.weights.shapes, self.weights.axes)
        ]


# --- The model that samples ---


def find_weights(params: Params, axes: Any, dtype: str) -> Weights:
    """Shapes and axes of the weights that sample: kernels in the dtype of computation, norms and routers as they are.
    Prediction depths are left out.
    """

    def narrow(path: Any, x: Any) -> jax.ShapeDtypeStruct:
        names = [str(getattr(key, "key", key)) for key in path]
        kept = "router" in names or names[-1] == "scale" or not jnp.issubdtype(x.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(x.shape, x.dtype if kept else jnp.dtype(dtype))

    return Weights(jax.tree_util.tree_map_with_path(narrow, _without_depths(params)), _without_depths(axes))


def fit_graph(graph: nnx.GraphDef, params: Params, dtype: str) -> nnx.GraphDef:
    """The structure of the model without prediction depths, computing in `dtype`, whose experts' buffers hold
    `BUFFER_FACTOR` times the mean load and send what exceeds it in further turns.
    """
    model = merge(graph, params)
    model.mtp = None
    model.dtypes = Dtypes(dtype, dtype)
    for _, module in nnx.iter_graph(model):
        if not isinstance(module, nnx.Module):
            continue
        for name in ("compute", "dtype"):
            if hasattr(module, name):
                setattr(module, name, dtype)
        if isinstance(module, MoE) and module.dispatch.way != "dense":
            factor = module.dispatch.buffer_factor or BUFFER_FACTOR
            module.dispatch = Dispatch(module.dispatch.way, factor, module.dispatch.tokens, complete=True)
    return split(model)[0]


def _without_depths(tree: Any) -> Any:
    return {name: part for name, part in tree.items() if name != "mtp"}


# --- The plan of an array ---


class FineMesh(NamedTuple):
    """A mesh whose axes split those of two others, and the fine axes of each of their axes."""

    mesh: Mesh
    source: dict[str, tuple[str, ...]]
    target: dict[str, tuple[str, ...]]


@functools.cache
def refine(source: Mesh, target: Mesh) -> FineMesh | None:
    """The common refinement of two meshes over the same devices in the same order; None if there is none."""
    if source.size == 1 or list(source.devices.flat) != list(target.devices.flat):
        return None
    strides = sorted({1, source.size, *_strides(source), *_strides(target)})
    if any(outer % inner for inner, outer in itertools.pairwise(strides)):
        return None
    names = {inner: f"part{number}" for number, inner in enumerate(strides[:-1])}
    sizes = [outer // inner for inner, outer in itertools.pairwise(strides)]
    mesh = Mesh(
        source.devices.reshape(sizes[::-1]), tuple(names.values())[::-1], axis_types=(AxisType.Auto,) * len(names)
    )

    def axes_of(coarse: Mesh) -> dict[str, tuple[str, ...]]:
        inner = [*_strides(coarse)]
        outer = [source.size, *inner[:-1]]
        return {
            axis: tuple(names[s] for s in sorted(names, reverse=True) if low <= s < high)
            for axis, low, high in zip(coarse.axis_names, inner, outer, strict=True)
        }

    return FineMesh(mesh, axes_of(source), axes_of(target))


def _strides(mesh: Mesh) -> list[int]:
    """Devices between neighbours along each axis, from the outermost."""
    sizes = [*mesh.shape.values()]
    return [math.prod(sizes[place + 1 :]) for place in range(len(sizes))]


def find_places(layout: Layout, axes: Any, shape: tuple[int, ...], fine: dict[str, tuple[str, ...]]) -> Places:
    """Fine mesh axes of each dimension of an array in a layout."""
    assert layout.mesh is not None
    with use_layout(layout):
        spec = partition(axes, shape, layout.mesh)
    coarse = [(entry,) if isinstance(entry, str) else entry or () for entry in spec]
    return tuple(tuple(part for axis in entry for part in fine[axis]) for entry in coarse)


def plan_moves(source: Places, target: Places) -> list[Move]:
    """Exchanges, one after the other, that take an array from the places of `source` to those of `target`.

    A dimension's axes are taken off from the innermost. Cuts come first, then axes that change their dimension, then
    gathers.
    """
    now, moves = [list(places) for places in source], []

    def is_right(dimension: int) -> bool:
        return now[dimension] == list(target[dimension][: len(now[dimension])])

    def next_of(dimension: int) -> str | None:
        """The axis that a dimension, so far right, lacks next."""
        return (
            target[dimension][len(now[dimension])]
            if is_right(dimension) and now[dimension] != list(target[dimension])
            else None
        )

    dimensions = range(len(now))
    while any(now[d] != list(target[d]) for d in dimensions):
        used = {axis for places in now for axis in places}
        lacking = {axis: d for d in dimensions if (axis := next_of(d)) is not None}
        cuts = [Move(axis, -1, d) for axis, d in lacking.items() if axis not in used]
        wrong = [d for d in dimensions if not is_right(d)]
        changes = [Move(now[d][-1], d, lacking[now[d][-1]]) for d in wrong if now[d][-1] in lacking]
        gathers = [Move(now[d][-1], d, -1) for d in wrong]
        move = (cuts or changes or gathers)[0]
        if move.source >= 0:
            now[move.source].pop()
        if move.target >= 0:
            now[move.target].append(move.axis)
        moves.append(move)
    return moves


def _follow(x: jax.Array, source: Places, target: Places) -> jax.Array:
    """The shard of a device after the moves of a plan."""
    moves = itertools.groupby(plan_moves(source, target), key=lambda move: move.source if move.target < 0 else move)
    for _, (move, *more) in moves:
        if move.target < 0:
            gathered = tuple(other.axis for other in (move, *more))[::-1]
            x = jax.lax.all_gather(x, gathered, axis=move.source, tiled=True)
        elif move.source < 0:
            size = x.shape[move.target] // jax.lax.axis_size(move.axis)
            x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(move.axis) * size, size, move.target)
        else:
            x = jax.lax.all_to_all(x, move.axis, move.target, move.source, tiled=True)
    return x
