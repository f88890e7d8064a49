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
from r1jax.models.transformer import stack, unstack


def restore_state(checkpoints: Checkpoints, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
    """State of a step with the shardings of `abstract`, and its metadata. Raises UserError if it does not fit
    this run.
    """
    node: dict[str, Any] = next(
        (node for node in jax.tree.leaves(abstract, is_leaf=_has_layers) if _has_layers(node)), {}
    )
    groups = node.get("stacks", {})
    counts = [jax.tree.leaves(groups[group])[0].shape[0] for group in range(len(groups))]
    saved = _count_saved(SavedArrays(checkpoints.folder(step)))
    if bool(counts) == bool(saved):
        return checkpoints.restore(step, abstract)
    if counts:
        before, turn = _turn(abstract, lambda tree: unstack(tree, counts, _take)), lambda tree: stack(tree, counts)
    else:
        before, turn = _turn(abstract, lambda tree: stack(tree, saved, _join)), lambda tree: unstack(tree, saved)
    state, metadata = checkpoints.restore(step, before)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(lambda state: _turn(state, turn), out_shardings=places)(state), metadata


def _count_saved(saved: SavedArrays) -> list[int]:
    """Number of layers in each saved stack; [] for the unrolled layout."""
    stacked = [path for path in saved.paths if "stacks" in path]
    stacks = {path[path.index("stacks") + 1]: saved.shape(path)[0] for path in stacked}
    return [stacks[group] for group in range(len(stacks))]


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
