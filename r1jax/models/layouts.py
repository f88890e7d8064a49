"""Parameters below the border of the module system: a plain nested dict, with the layers as a list or as stacks."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r1jax.models.layers import Keys

Params = dict[str, Any]
MakeBlock = Callable[[Any], Any]  # of `Keys`, which stand in for nnx.Rngs


def split(module: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Structure of a module, and its parameters as a plain nested dict."""
    graph, state = nnx.split(module)
    return graph, nnx.to_pure_dict(state)


def merge(graph: nnx.GraphDef, params: Params) -> Any:
    """The module of a structure and parameters from `split`."""
    return nnx.merge(graph, params)


def logical_axes(module: nnx.Module) -> Params:
    """Logical axes of every parameter as tuples, in the structure of `split(module)[1]`."""
    _, state = nnx.split(module)
    axes = jax.tree.map(lambda v: v.get_metadata("axes"), state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return axes if isinstance(axes, dict) else nnx.to_pure_dict(axes)


def unstack(params: Params, counts: Sequence[int] = (), take: Callable[[Any, int], Any] = operator.getitem) -> Params:
    """Scanned -> canonical layout: the rows of all `stacks` become `layers` {0: ..., 1: ...}. Canonical parameters are
    returned unchanged. counts: repeats of each group (default: the rows of the arrays); `take(array, row)` extracts a
    row.
    """
    if "stacks" not in params:
        return params
    stacks = [params["stacks"][group] for group in range(len(params["stacks"]))]
    counts = counts or [jax.tree.leaves(tree)[0].shape[0] for tree in stacks]
    rows = [
        (tree, i) for group, count in zip(stacks, counts, strict=True) for i in range(count) for tree in _list(group)
    ]
    layers = {layer: jax.tree.map(lambda x, i=i: take(x, i), tree) for layer, (tree, i) in enumerate(rows)}
    return {"layers": layers, **{key: value for key, value in params.items() if key != "stacks"}}


def stack(
    params: Params,
    counts: Sequence[int] = (),
    join: Callable[[Sequence], Any] = jnp.stack,
    periods: Sequence[int] = (),
) -> Params:
    """Canonical -> scanned layout with groups of `counts` layers (default: one group). Scanned parameters are returned
    unchanged. `join(arrays)` stacks the arrays of a group. periods: blocks of each group's pattern (default: 0, no
    pattern).
    """
    if "stacks" in params:
        return params
    layers = params["layers"]
    ends = np.cumsum(counts or [len(layers)])
    groups = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    gather = lambda members: jax.tree.map(lambda *xs: join(xs), *(layers[i] for i in members))
    stacks = {
        group: {at: gather(members[at::period]) for at in range(period)} if period else gather(members)
        for group, (members, period) in enumerate(zip(groups, periods or [0] * len(groups), strict=True))
    }
    return {"stacks": stacks, **{key: value for key, value in params.items() if key != "layers"}}


def find_periods(params: Params) -> list[int]:
    """Blocks of the pattern of each group of stacks; 0 for a group of equal layers."""
    groups: dict[int, Any] = params["stacks"]
    return [len(_list(groups[at])) if _is_pattern(groups[at]) else 0 for at in range(len(groups))]


def _is_pattern(group: dict[Any, Any]) -> bool:
    return all(isinstance(key, int) for key in group)


def _list(group: dict[Any, Any]) -> list[Params]:
    """The stacks of a group."""
    return [group[at] for at in range(len(group))] if _is_pattern(group) else [group]


def stack_group(make: MakeBlock | Sequence[MakeBlock], keys: jax.Array) -> Any:
    """The stack of a group of equal layers, or the stacks of the blocks of its pattern."""
    if not isinstance(make, Sequence):
        return _stacked_block(make, keys)
    return nnx.List([_stacked_block(each, keys[at :: len(make)]) for at, each in enumerate(make)])


def _stacked_block(make_block: MakeBlock, keys: jax.Array) -> Any:
    """One block with the weights of all layers of a group, stacked along a new first axis "layers"."""
    graph, _ = split(nnx.eval_shape(lambda: make_block(Keys(keys[0]))))
    block = merge(graph, jax.vmap(lambda key: split(make_block(Keys(key)))[1])(keys))
    for _, variable in nnx.iter_graph(block):
        if isinstance(variable, nnx.Variable):
            variable.set_metadata(axes=("layers", *variable.get_metadata("axes")))
    return block


def is_recurrent(graph: nnx.GraphDef) -> bool:
    """Whether a structure has layers with a state, as `Transformer.is_recurrent` says of a model."""
    types = (getattr(node, "type", None) for node in graph.nodes)
    return any(getattr(each, "is_recurrent", None) is True for each in types)
