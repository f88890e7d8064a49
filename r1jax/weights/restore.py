"""Restores a training state from a checkpoint into this run's layer layout, whatever layout it was saved in.

Arrays are restored as saved, with shardings like their final ones, and then stacked or unstacked in one jitted program.
Parts of the state that mirror the parameters (optimizer moments) are converted too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from r1jax.core.checkpoint import Checkpoints, SavedArrays
from r1jax.models.layouts import find_periods, stack, unstack


def restore_state(checkpoints: Checkpoints, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
    """State of a step with the shardings of `abstract`, and its metadata. Raises UserError if it does not fit
    this run.
    """
    node: dict[str, Any] = next(
        (node for node in jax.tree.leaves(abstract, is_leaf=_has_layers) if _has_layers(node)), {}
    )
    groups = node.get("stacks", {})
    repeats = [jax.tree.leaves(groups[group])[0].shape[0] for group in range(len(groups))]
    saved, patterns = _count_saved(SavedArrays(checkpoints.folder(step)))
    if bool(repeats) == bool(saved):
        return checkpoints.restore(step, abstract)
    if repeats:
        periods = find_periods(node)
        counts = [count * (period or 1) for count, period in zip(repeats, periods, strict=True)]
        before = _turn(abstract, lambda tree: unstack(tree, repeats, _take))
        turn = lambda tree: stack(tree, counts, periods=periods)
    else:
        counts = [count * (period or 1) for count, period in zip(saved, patterns, strict=True)]
        before = _turn(abstract, lambda tree: stack(tree, counts, _join, patterns))
        turn = lambda tree: unstack(tree, saved)
    state, metadata = checkpoints.restore(step, before)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(lambda state: _turn(state, turn), out_shardings=places)(state), metadata


def _count_saved(saved: SavedArrays) -> tuple[list[int], list[int]]:
    """Repeats of each saved group of layers, and the blocks of its pattern (0: none); [] for the unrolled layout."""
    stacked = [(path, path.index("stacks") + 1) for path in saved.paths if "stacks" in path]
    stacks = {path[at]: saved.shape(path)[0] for path, at in stacked}
    members = {path[at : at + 2] for path, at in stacked if isinstance(path[at + 1], int)}
    groups = range(len(stacks))
    return [stacks[group] for group in groups], [sum(place[0] == group for place in members) for group in groups]


def _has_layers(tree: Any) -> bool:
    return isinstance(tree, dict) and bool({"layers", "stacks"} & set(tree))


def _turn(state: Any, turn: Callable[[Any], Any]) -> Any:
    """The state with `turn` applied to every part that has layers."""
    return jax.tree.map(lambda tree: turn(tree) if _has_layers(tree) else tree, state, is_leaf=_has_layers)


def _take(leaf: jax.ShapeDtypeStruct, row: int) -> jax.ShapeDtypeStruct:
    place = leaf.sharding
    if isinstance(place, NamedSharding):
        place = NamedSharding(place.mesh, PartitionSpec(*place.spec[1:]))
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=place)


def _join(leaves: Sequence[jax.ShapeDtypeStruct]) -> jax.ShapeDtypeStruct:
    place = leaves[0].sharding
    if isinstance(place, NamedSharding):
        place = NamedSharding(place.mesh, PartitionSpec(None, *place.spec))
    return jax.ShapeDtypeStruct((len(leaves), *leaves[0].shape), leaves[0].dtype, sharding=place)
