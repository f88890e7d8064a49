"""A training state saved with layers in stacks is restored with layers by themselves, and the other way round."""

from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from r1jax.core.checkpoint import Checkpoints
from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.learner.optimizer import OptimizerConfig, make_optimizer
from r1jax.learner.state import TrainState, abstract_state, init_state
from r1jax.models.transformer import logical_axes, split, unstack
from r1jax.weights import load_pretrained
from r1jax.weights.restore import restore_state

GOLDEN = Path(__file__).parents[1] / "goldens" / "deepseek" / "v3_latent"  # dense layers, experts, prediction depth


def make_states(**options: Any) -> tuple[TrainState, TrainState]:
    """(a state in which all numbers differ, its shapes and places)."""
    model, _ = load_pretrained(GOLDEN, **options)
    params, axes, optimizer = split(model)[1], logical_axes(model), make_optimizer(OptimizerConfig(), 1)
    state = init_state(params, axes, optimizer)
    random = np.random.default_rng(0)
    fill = lambda leaf, place: jax.device_put(
        np.asarray(leaf + random.normal(size=leaf.shape), leaf.dtype), place.sharding
    )
    state = jax.tree.map(fill, jax.device_get(state), state)
    return state, abstract_state(params, axes, optimizer)


def canonical(state: TrainState) -> TrainState:
    """The state as numpy arrays, layers by themselves in parameters and moments."""
    has_layers = lambda tree: isinstance(tree, dict) and ("layers" in tree or "stacks" in tree)
    turn = lambda tree: unstack(tree, (1, 2)) if has_layers(tree) else tree
    return jax.tree.map(turn, jax.device_get(state), is_leaf=has_layers)


@pytest.mark.parametrize(
    ("mesh", "scanned"), [(MeshConfig(data=1), False), (MeshConfig(data=2, fsdp=2, tensor=2), True)]
)
def test_a_state_is_restored_into_either_layout(tmp_path: Path, mesh: MeshConfig, scanned: bool) -> None:
    with use_mesh(make_mesh(mesh, jax.devices()[: 8 if mesh.tensor > 1 else 1])):
        state, same = make_states(scan_layers=scanned)
        _, other = make_states(scan_layers=not scanned)
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(5, state, {"position": 7})
        for abstract in (same, other):
            found, facts = restore_state(checkpoints, 5, abstract)
            assert facts == {"position": 7}
            jax.tree.map(lambda leaf, place: np.testing.assert_equal(leaf.sharding, place.sharding), found, abstract)
            chex.assert_trees_all_equal(canonical(found), canonical(state))
            assert ("stacks" in found.params) == ("stacks" in abstract.params)
        checkpoints.close()
