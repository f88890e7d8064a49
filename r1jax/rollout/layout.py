"""Layout of rollouts: the devices of a run arranged anew for decoding.

Training splits weights over all devices, because its state would not fit otherwise, and gathers them for every product;
decoding would gather them for every token. Here nothing larger than activations travels in a decode step: rows are
split over all devices, weights lie whole at each, or, where they are too large for that, experts are split over all
devices and the other weights over a few neighbours (`tensor`), which bring their rows together for each product.

The devices keep their order, so that weights go from one layout to the other by a compiled program (handover.py), and
an axis of training is split into axes of rollouts where possible. Rollouts split no positions: `context` is a further
axis of rows and experts.

`choose_layout` is a closed form of shapes and memory, the same in every process.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from r1jax.core.errors import UserError
from r1jax.core.sharding import (
    MESH_AXES,
    Layout,
    MeshConfig,
    Rules,
    abstract_tree,
    batch_parts,
    list_leaves,
    resolve_sizes,
    use_layout,
)
from r1jax.models.transformer import Params

AUTO, SAME = "auto", "same"
SHARE = 0.4  # of the memory beside the rest of the run, for weights; caches and temporary arrays need the others
MOST = 0.8  # of that memory: weights that need more stay in the layout of training
NEIGHBOURS = (8, 4, 2)

# Logical axes in rollouts, over those of training (core/sharding.py).
RULES: Rules = {
    "batch": ("data", "fsdp", "expert", "context", "tensor"),
    "group_batch": ("data", "fsdp", "expert", "context"),
    "sequence": None,
    "embed": None,
    "from_latent": None,
    "latent": None,
    "expert_embed": None,
    "expert_mlp": "fsdp",
    "experts": ("context", "tensor", "expert"),
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """Shapes of the weights that sample, and their logical axes."""

    shapes: Params
    axes: Any

    @property
    def experts(self) -> tuple[int, int]:
        """Number of experts, and their width; (0, 0) without."""
        for leaf, axes in list_leaves(self.shapes, self.axes):
            if "experts" in axes and "expert_mlp" in axes:
                size = dict(zip(axes, leaf.shape, strict=True))
                return size["experts"], size["expert_mlp"]
        return 0, 0

    def place(self, layout: Layout) -> Params:
        """The shapes with shardings in a layout. Raises UserError, naming config.rollout, where they do not divide."""
        try:
            with use_layout(layout):
                return abstract_tree(self.shapes, self.axes)
        except UserError as error:
            raise UserError(name_rollout(str(error))) from None

    def bytes_in(self, layout: Layout) -> int:
        """Bytes of a device."""
        return find_bytes(self.place(layout))


def find_bytes(params: Params, *, width: int = 0) -> int:
    """Bytes of a device for arrays or shapes with shardings, as they are or with so many bytes a number."""
    shape = lambda x: x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    return sum(math.prod(shape(x)) * (width or x.dtype.itemsize) for x in jax.tree.leaves(params))


def name_rollout(message: str) -> str:
    """A message of a layout that names the keys of rollouts."""
    return message.replace("config.mesh.rules", "config.rollout.rules").replace("config.mesh", "config.rollout.mesh")


def choose_layout(
    training: Layout, mesh: str, rules: Mapping[str, Any], weights: Weights, *, free: int, rows: tuple[int, ...]
) -> Layout:
    """The layout of rollouts beside that of training.

    mesh: "auto", "same" (the layout of training) or axes and sizes (`tensor=8,expert=64`). rules: entries over `RULES`.
    free: bytes of a device beside the rest of the run. rows: numbers of rows that the engine's programs have.

    "auto" takes the first of these whose weights need no more than `SHARE` of `free`: whole weights; whole weights but
    for experts, which all devices share; the other weights too over 8, 4 or 2 neighbours. If none does, the smallest
    that needs at most `MOST`, else the layout of training. On one device, where all lies in training as it would here,
    and where the rows do not divide by the devices, it is the layout of training.
    """
    if training.mesh is None or training.mesh.size == 1 or mesh == SAME:
        return training
    if mesh != AUTO:
        return _arrange(training.mesh, read_sizes(mesh), {**RULES, **rules})
    devices = training.mesh.size
    if any(count % devices for count in rows):
        return training
    fitting = []
    for sizes in _candidates(training, *weights.experts):
        layout = _arrange(training.mesh, sizes, {**RULES, **rules})
        try:
            needed = weights.bytes_in(layout)
        except UserError:
            continue
        if needed <= SHARE * free:
            return training if _is_same(training, layout, weights) else layout
        fitting.append((needed, layout))
    needed, layout = min(fitting, key=lambda pair: pair[0], default=(free, training))
    return layout if needed <= MOST * free else training


def _is_same(training: Layout, layout: Layout, weights: Weights) -> bool:
    """Whether two layouts split rows over all devices and have the weights in the same places."""
    assert training.mesh is not None
    with use_layout(training):
        if batch_parts() < training.mesh.size:
            return False
    pairs = zip(jax.tree.leaves(weights.place(training)), jax.tree.leaves(weights.place(layout)), strict=True)
    return all(one.sharding.is_equivalent_to(other.sharding, len(one.shape)) for one, other in pairs)


def _candidates(training: Layout, experts: int, width: int) -> Iterator[MeshConfig]:
    """Sizes of meshes, from whole weights to the most split."""
    assert training.mesh is not None
    yield MeshConfig(data=training.mesh.size)
    for tensor in (1, *NEIGHBOURS):
        if experts:
            yield from _share_experts(dict(training.mesh.shape), experts, width, tensor)
        elif tensor > 1 and training.mesh.size % tensor == 0:
            yield MeshConfig(data=training.mesh.size // tensor, tensor=tensor)


def _share_experts(training: dict[str, int], experts: int, width: int, tensor: int) -> Iterator[MeshConfig]:
    """Experts over all devices of a copy: first those that training splits them over, then its other ones, and their
    width over what is left. With as many copies as training has, or more.
    """
    copies, inner = training["data"], training["expert"] * training["context"] * training["tensor"]
    if inner % tensor or experts % inner:  # the neighbours' axis does not refine that of training
        inner = tensor
    outer = math.prod(training.values()) // copies // inner
    if outer * inner * copies != math.prod(training.values()) or experts % inner:
        return
    more = math.gcd(experts // inner, outer)
    split = math.gcd(width, outer // more)
    yield MeshConfig(
        data=copies * (outer // more // split), fsdp=split, expert=more, context=inner // tensor, tensor=tensor
    )


def _arrange(training: Mesh, config: MeshConfig, rules: Rules) -> Layout:
    """The devices of training in their order, in other axes."""
    shape = resolve_sizes(config, training.size, key="config.rollout.mesh")
    mesh = Mesh(training.devices.reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    return Layout(mesh, rules)


def read_sizes(text: str, key: str = "config.rollout.mesh") -> MeshConfig:
    """Sizes of mesh axes from `tensor=8,expert=64`; axes that are not named are 1, and `data` takes what is left unless
    another one is -1. Raises UserError, naming `key`.
    """
    sizes: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        axis, _, size = (piece.strip() for piece in part.partition("="))
        if axis not in MESH_AXES or not size.removeprefix("-").isdecimal():
            raise UserError(f"a mesh must be axis=size,... with axes {', '.join(MESH_AXES)}, got {text!r} ({key})")
        sizes[axis] = int(size)
    return MeshConfig(**{"data": 1 if -1 in sizes.values() else -1, **sizes})
