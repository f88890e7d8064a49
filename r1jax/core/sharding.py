"""Meshes, and the table from logical axes to mesh axes.

Every parameter and activation names logical axes ("embed", "heads", "batch", ...). `RULES` maps each of them to mesh
axes; a config may replace single entries (`config.mesh.rules`). The placement of a whole state follows from shapes
alone: abstract state -> shardings -> arrays created in place, so no host ever holds a model that exceeds its memory.

A `Layout` is a mesh with its rules. Inside `use_mesh(mesh, rules)` or `use_layout(layout)` the functions here use it;
without one `constrain` does nothing, so the same model code runs on one device without a mesh.

The current layout belongs to a thread, like jax's own mesh, and a new thread has none. Objects that compute (an engine,
a learner, ...) therefore keep the `current_layout()` of their construction, and their methods enter it (`in_layout`):
called from any thread they run the same programs. Asking for the layout in a thread that has entered none, while
another thread works on several devices, is an error: without constraints the program would be a different one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from r1jax.core.errors import UserError

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor")  # last axes are neighbours: they communicate most

P = ParamSpec("P")
R = TypeVar("R")
Axes = tuple[str | None, ...]
Rules = Mapping[str, str | tuple[str, ...] | None]

RULES: Rules = {
    # parameters
    "embed": ("fsdp", "expert"),
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "head_dim": None,
    "experts": "expert",
    "expert_embed": "fsdp",
    "latent": None,
    "from_latent": ("fsdp", "expert"),
    "norm": None,
    "layers": None,
    # activations
    "batch": ("data", "fsdp", "expert"),
    "sequence": "context",
    "act_embed": None,
}

# Axes that follow another one unless a table names them: the width of experts, and the rows of activations whose widths
# are split. Where these differ from "batch", each row belongs to one device between the products with split weights,
# and the devices that share a product bring their rows together for it (`join_rows`).
FOLLOWS = {"expert_mlp": "mlp", "group_batch": "batch"}

WHOLE_IF_UNEVEN = ("sequence",)  # a short shared prefix, or the token of a decoding step, need not be divisible


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes, in devices; one of them may be -1 and takes the devices that are left.

    Attributes:
      data: ways that the rows of a batch are split while parameters are copied.
      fsdp: ways that rows and parameters are split together.
      expert: ways that experts are split, besides rows and parameters; tokens travel between them (models/dispatch.py).
      context: ways that the positions of a row are split.
      tensor: ways that heads, hidden widths and the vocabulary are split.
      rules: entries over `RULES`: logical axis -> mesh axis, several of them ("data,fsdp" or a tuple), or None for
        whole on every device.
    """

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1
    rules: Mapping[str, str | tuple[str, ...] | None] = dataclasses.field(default_factory=dict, hash=False)

    def sizes(self) -> dict[str, int]:
        """Axis name -> size as configured (-1 not yet resolved)."""
        return {axis: getattr(self, axis) for axis in MESH_AXES}


def _mesh_axes(target: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes that a rule names."""
    if isinstance(target, str):
        return tuple(filter(None, (axis.strip() for axis in target.split(","))))
    return tuple(target or ())


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh (None: one device, nothing is placed) with its table from logical axes to mesh axes. Layouts compare by
    value: equal ones give the same programs.

    rules: given as entries over `RULES`, stored as the whole table.
    """

    mesh: Mesh | None = None
    rules: Rules = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        whole = {axis: _mesh_axes(target) for axis, target in {**RULES, **self.rules}.items()}
        whole = {**{axis: whole[other] for axis, other in FOLLOWS.items()}, **whole}
        object.__setattr__(self, "rules", types.MappingProxyType(whole))

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.mesh, frozenset(self.rules.items())))

    def __hash__(self) -> int:
        return self._hash

    @property
    def devices(self) -> int:
        """Number of devices that arrays are spread over."""
        return 1 if self.mesh is None else self.mesh.size


ONE_DEVICE = Layout()


class _Entered(threading.local):
    """The layout that a thread has entered (None: none)."""

    layout: Layout | None = None


_entered = _Entered()
_in_use: dict[object, Layout] = {}  # multi-device layouts that threads have entered, by entry
# jax's caches know the mesh of a traced program but not the rules: this makes the rules part of the cache key.
_traced_for = jax.make_user_context(None)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None, *, key: str = "config.mesh") -> Mesh:
    """The mesh over all devices. Raises UserError, naming `key`, if the sizes do not multiply to their number."""
    devices = list(jax.devices() if devices is None else devices)
    arranged = _arrange(devices, resolve_sizes(config, len(devices), key=key))
    return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def resolve_sizes(config: MeshConfig, devices: int, *, key: str = "config.mesh") -> tuple[int, ...]:
    """The sizes of the axes for so many devices. Raises UserError, naming `key`, if they do not multiply to them."""
    sizes = config.sizes()
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"{key}: sizes must be positive and at most one may be -1, got {sizes}")
    if free:
        sizes[free[0]] = max(1, devices // fixed)
    if math.prod(sizes.values()) != devices:
        raise UserError(
            f"{key}: the axes {sizes} need {math.prod(sizes.values())} devices but there are {devices}; "
            f"set one of {'/'.join(MESH_AXES)} to -1 or change the sizes"
        )
    return tuple(sizes[axis] for axis in MESH_AXES)


def _arrange(devices: list[jax.Device], shape: tuple[int, ...]) -> np.ndarray:
    """The devices in the shape of the mesh: on TPUs neighbours on an axis are neighbours in the torus, and with several
    slices only the axis `data` crosses slices.
    """
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    data = MESH_AXES.index("data")
    if shape[data] % slices:
        raise UserError(f"config.mesh.data must be divisible by the {slices} slices, got {shape[data]}")
    across = tuple(slices if axis == data else 1 for axis in range(len(shape)))
    within = tuple(size // count for size, count in zip(shape, across, strict=True))
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules: Rules | None = None) -> Iterator[Mesh]:
    """Makes mesh and rules (entries over `RULES`) the current layout of this thread for the body."""
    with use_layout(Layout(mesh, rules or {})):
        yield mesh


@contextlib.contextmanager
def use_layout(layout: Layout) -> Iterator[Layout]:
    """Makes `layout` the current one of this thread for the body, for the functions here, for jax and for its caches of
    traced and compiled programs.

    Raises ValueError inside a function that jax is tracing, unless the layout is the current one already.
    """
    before, entry = _entered.layout, object()
    if layout == before:
        yield layout
        return
    with contextlib.ExitStack() as stack:
        if layout.mesh is not None or (before is not None and before.mesh is not None):
            stack.enter_context(jax.set_mesh(layout.mesh))
            stack.enter_context(_traced_for(None if layout.mesh is None else layout))
        if layout.devices > 1:
            _in_use[entry] = layout
        _entered.layout = layout
        try:
            yield layout
        finally:
            _entered.layout = before
            _in_use.pop(entry, None)


def in_layout(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Decorator of a method that runs inside its object's `layout`, in any thread."""

    @functools.wraps(method)
    def run(self: Any, *args: P.args, **options: P.kwargs) -> R:
        with use_layout(self.layout):
            return method(self, *args, **options)

    return run


def current_layout() -> Layout:
    """The layout that this thread has entered, `ONE_DEVICE` if it has entered none.

    Raises RuntimeError if it has entered none and another thread works on several devices.
    """
    if _entered.layout is not None:
        return _entered.layout
    if others := list(_in_use.values()):
        raise RuntimeError(
            f"thread {threading.current_thread().name!r} has entered no layout, while another thread uses a mesh of "
            f"{others[0].devices} devices, on which its arrays would not be placed; pass the layout of the starting "
            "thread (layout = current_layout()) and enter it here (with use_layout(layout):), or compute on one device "
            "(with use_layout(ONE_DEVICE):)"
        )
    return ONE_DEVICE


def current_mesh() -> Mesh | None:
    """The mesh of the current layout, or None. Raises like `current_layout`."""
    return current_layout().mesh


def current_device() -> jax.Device:
    """A device that programs are compiled for now: of the current mesh, else the default one."""
    mesh = current_mesh()
    return jax.devices()[0] if mesh is None else mesh.devices.flat[0]


def partition(axes: Axes, shape: Sequence[int], mesh: Mesh, *, name: str = "array") -> PartitionSpec:
    """The PartitionSpec of an array of `shape` whose dimensions have logical `axes`. A dimension of size 1 is not
    sharded, nor is a sequence that is not divisible.

    Raises UserError if a logical axis has no rule, a rule names an unknown mesh axis, two dimensions use the same mesh
    axis, or a dimension is not divisible.
    """
    if len(axes) != len(shape):
        raise UserError(f"{name}: {len(axes)} axes {axes} for the shape {tuple(shape)}")
    rules, used, spec = current_layout().rules, set[str](), []
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and axis not in rules:
            raise UserError(f"{name}: no rule for the logical axis {axis!r}; add it to config.mesh.rules")
        target = rules[axis] if axis is not None else None
        wanted = _mesh_axes(target)
        if unknown := set(wanted) - set(mesh.axis_names):
            raise UserError(
                f"{name}: config.mesh.rules sends {axis!r} to {sorted(unknown)[0]!r}; "
                f"mesh axes are {', '.join(mesh.axis_names)}"
            )
        mesh_axes = tuple(a for a in wanted if mesh.shape[a] > 1 and size > 1)
        parts = math.prod(mesh.shape[a] for a in mesh_axes)
        if size % parts and axis in WHOLE_IF_UNEVEN:
            mesh_axes, parts = (), 1
        if clash := used & set(mesh_axes):
            raise UserError(
                f"{name}: {axes} uses the mesh axis {sorted(clash)} twice; change config.mesh.rules for {axis!r}"
            )
        if size % parts:
            raise UserError(
                f"{name}: dimension {axis!r} of size {size} must be divisible by the mesh axes "
                f"{'x'.join(mesh_axes)} = {parts}; change config.mesh.{mesh_axes[0]} or config.mesh.rules"
            )
        used |= set(mesh_axes)
        spec.append(mesh_axes if len(mesh_axes) > 1 else mesh_axes[0] if mesh_axes else None)
    return PartitionSpec(*spec)


def sharding(axes: Axes, shape: Sequence[int], *, name: str = "array") -> NamedSharding | None:
    """The sharding under the current mesh, or None without one."""
    mesh = current_mesh()
    return None if mesh is None else NamedSharding(mesh, partition(axes, shape, mesh, name=name))


def abstract_array(shape: Sequence[int], dtype: Any, axes: Axes, *, name: str = "array") -> jax.ShapeDtypeStruct:
    """The shape of an array whose dimensions carry logical `axes`, with its sharding under the current mesh."""
    shape = tuple(shape)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(axes, shape, name=name))


def abstract_tree(tree: Any, axes: Any) -> Any:
    """The shapes of a tree of arrays, with shardings. axes: a tree of the logical axes of each."""
    return jax.tree.map(lambda x, axes: abstract_array(x.shape, x.dtype, axes), tree, axes)


def list_leaves(tree: Any, axes: Any) -> list[tuple[Any, Axes]]:
    """Each array of a tree with its logical axes, of a tree of the same form."""
    flat = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    return list(zip(jax.tree.leaves(tree), flat, strict=True))


def is_abstract(tree: Any) -> bool:
    """Whether a tree holds shapes in the place of arrays."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def constrain(x: jax.Array, axes: Axes, *, name: str = "activation") -> jax.Array:
    """Sharding constraint of an activation by its logical axes; the identity without a mesh or on one device."""
    mesh = current_mesh()
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition(axes, x.shape, mesh, name=name)))


def gather_places(
    axes: Axes, shape: Sequence[int], inputs: int, *, name: str = "kernel"
) -> tuple[NamedSharding, NamedSharding] | None:
    """The shardings of a kernel [in..., out...] as a matrix [in, out], with `inputs` input dimensions: whole over the
    mesh axes of rows, in which it is multiplied, and its own. None where they are the same, or there is no mesh.
    """
    layout = current_layout()
    if layout.mesh is None or layout.devices == 1:
        return None
    spec = partition(axes, shape, layout.mesh, name=name)
    own, rows = [_mesh_axes(part) for part in spec], set(_mesh_axes(layout.rules["group_batch"]))
    for group in (own[1:inputs], own[inputs + 1 :]):
        if any(group):  # the matrix would interleave its parts
            return None
    sides = own[0], own[inputs]
    if not rows & {axis for side in sides for axis in side}:
        return None
    whole = [tuple(axis for axis in side if axis not in rows) for side in sides]
    return NamedSharding(layout.mesh, PartitionSpec(*whole)), NamedSharding(layout.mesh, PartitionSpec(*sides))


def joins_rows() -> bool:
    """Whether products with split weights bring rows of several devices together under the current rules."""
    layout = current_layout()
    return layout.mesh is not None and layout.rules["group_batch"] != layout.rules["batch"]


def join_rows(x: jax.Array) -> jax.Array:
    """[B, ...] with the rows of the devices that share a product at each of them; the identity where none do."""
    return constrain(x, ("group_batch", *(None,) * (x.ndim - 1)), name="rows") if joins_rows() else x


def part_rows(x: jax.Array) -> jax.Array:
    """[B, ...] with each row at its own device again: partial sums of a product are summed there."""
    return constrain(x, ("batch", *(None,) * (x.ndim - 1)), name="rows") if joins_rows() else x


def replicated() -> NamedSharding | None:
    """Sharding that replicates an array on every device; None without a mesh."""
    mesh = current_mesh()
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def batch_parts() -> int:
    """Number of shards of the batch axis under the current mesh."""
    layout = current_layout()
    if layout.mesh is None:
        return 1
    return math.prod(layout.mesh.shape[a] for a in _mesh_axes(layout.rules["batch"]))


def settle(arrays: Any) -> Any:
    """The same arrays, waited for if several devices of a CPU compute them.

    Simulated devices share a few threads. Where programs with collectives queue up, each may wait for a device whose
    thread another one holds, for ever.
    """
    if current_layout().devices > 1 and jax.default_backend() == "cpu":
        jax.block_until_ready(arrays)
    return arrays
