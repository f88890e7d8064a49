"""A training state from a checkpoint, in this run's layout of layers whatever layout it was saved in.

The arrays are restored as they were saved, each on shards like those it will have, and then stacked or unstacked in one
program. In a state, everything of the parameters' form (moments) is turned like them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from r1jax.core.checkpoint import Checkpoints, SavedArrays
from r1jax.models.transformer import stack, unstack


def restore_state(checkpoints: Checkpoints, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
    """(the state of a step in the places of `abstract`, its metadata). Raises UserError if it does not fit this run."""
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
    """Layers of each stack on disk, [] where layers lie by themselves."""
    stacked = [path for path in saved.paths if "stacks" in path]
    stacks = {path[path.index("stacks") + 1]: saved.shape(path)[0] for path in stacked}
    return [stacks[group] for group in range(len(stacks))]


def _has_layers(tree: Any) -> bool:
    return isinstance(tree, dict) and bool({"layers", "stacks"} & set(tree))


def _turn(state: Any, turn: Callable[[Any], Any]) -> Any:
    """The state with `turn` of every part that has layers."""
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
