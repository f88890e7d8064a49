"""Correction biases of experts: who moves them, who does not, and that loads become equal."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r1jax.learner.balance import LOAD, is_bias, measure_load, shift_biases
from r1jax.learner.optimizer import OptimizerConfig, make_optimizer
from r1jax.learner.state import init_state
from r1jax.learner.step import Learner
from r1jax.models.experts import Gate, MoE
from r1jax.models.families import deepseek_v3
from r1jax.models.layers import FLOAT32
from r1jax.models.transformer import logical_axes, merge, split, stack

CONFIG = deepseek_v3.Config(num_layers=4, num_experts=4, gate=Gate("sigmoid", bias=True))
E = CONFIG.num_experts


def shapes() -> Any:
    return split(nnx.eval_shape(lambda: deepseek_v3.build(CONFIG, rngs=nnx.Rngs(0))))[1]


@pytest.mark.parametrize("scanned", [False, True])
def test_biases_move_by_the_sign_of_what_is_missing(scanned: bool) -> None:
    """Three layers and a prediction depth route; nothing else moves, and without its load the depth stays."""
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes())
    params = stack(params, (1, 3)) if scanned else params
    load = np.array([[4, 0, 2, 2], [1, 1, 1, 5], [2, 2, 2, 2], [0, 0, 0, 8]], np.float32)
    expected = 0.5 * np.array([[-1, 1, 0, 0], [1, 1, 1, -1], [0, 0, 0, 0], [1, 1, 1, -1]])
    for rows in (4, 3):
        moved = shift_biases(params, jnp.asarray(load[:rows]), 0.5)
        found = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(moved) if is_bias(path)]
        depth = found.pop(0 if scanned else 3)  # "mtp" comes between "layers" and "stacks"
        np.testing.assert_array_equal(np.concatenate([leaf.reshape(-1, E) for leaf in found]), expected[:3])
        np.testing.assert_array_equal(depth, expected[3] * (rows == 4))
        assert jax.tree.structure(moved) == jax.tree.structure(params)
        rest = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(moved) if not is_bias(path)]
        assert not any(leaf.any() for leaf in rest)


def test_measures_of_a_load() -> None:
    found = measure_load(jnp.array([[4.0, 0.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0]]))
    assert found == {
        "router/max_violation": 1.0,
        "router/mean_violation": 0.5,
        **{f"router/load/{e}": share for e, share in enumerate((1.5, 0.5, 1.0, 1.0))},
    }


def test_the_optimizer_never_moves_a_bias_and_holds_no_moments_of_it() -> None:
    params = {"router": {"correction_bias": jnp.ones(E), "kernel": jnp.ones((2, E))}}
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), 3)
    state = optimizer.init(params)
    assert not any(leaf.shape == (E,) for leaf in jax.tree.leaves(state))
    changes, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    assert not changes["router"]["correction_bias"].any() and changes["router"]["kernel"].all()


# --- On a skewed router ---

TOKENS, WIDTH, EXPERTS, ACTIVE = 2048, 8, 8, 2


def train(rate: float, updates: int) -> tuple[list[float], np.ndarray]:
    """(maximal violation of each update, the biases): two micro-batches an update, tokens that favour few experts."""
    model = MoE(WIDTH, 4, EXPERTS, ACTIVE, gate=Gate("sigmoid", bias=True), dtypes=FLOAT32, rngs=nnx.Rngs(0), std=0.5)
    graph, params = split(model)
    learner = Learner(
        lambda params, frozen, x: loss_fn(graph, params, x), make_optimizer(OptimizerConfig(1e-3), 1), bias_rate=rate
    )
    wrapped = {"layers": {0: params}}
    state = init_state(wrapped, {"layers": {0: logical_axes(model)}}, learner.optimizer)
    random, history = np.random.default_rng(0), []
    for _ in range(updates):
        x = random.normal(0.5, 1.0, size=(2, 1, TOKENS, WIDTH)).astype(np.float32)
        state, outcome, sums = learner.update(state, {}, x)
        assert all(LOAD not in part for part in sums) and outcome[LOAD].sum() == 2 * TOKENS * ACTIVE
        history.append(measure_load(outcome[LOAD])["router/max_violation"])
    return history, np.asarray(state.params["layers"][0]["router"]["correction_bias"])


def loss_fn(graph: Any, params: Any, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    y, router = merge(graph, params["layers"][0])(x)
    return jnp.square(y - x).mean() / 2, {LOAD: router["load"][None], "rows": jnp.ones(())}


def test_a_skewed_router_becomes_balanced_and_only_by_the_rate() -> None:
    """Below 0.1 within 250 updates, averaged over the last 20 of them: batches differ."""
    history, bias = train(0.004, 250)
    assert history[0] > 0.8 and np.mean(history[-20:]) < 0.1
    np.testing.assert_allclose(bias / 0.004, np.round(bias / 0.004), atol=1e-2)
    history, bias = train(0.0, 20)
    assert not bias.any() and np.mean(history[-5:]) > 0.5
