"""AdamW, clipping and schedules against their formulas in numpy."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from r1jax.core.errors import UserError
from r1jax.learner.optimizer import OptimizerConfig, decay_mask, make_optimizer, make_schedule
from r1jax.models.families import llama
from r1jax.models.transformer import split


def rates(updates: int, **options: Any) -> list[float]:
    schedule = make_schedule(OptimizerConfig(learning_rate=2.0, **options), updates)
    return [float(schedule(update)) for update in range(updates + 1)]


def test_schedules() -> None:
    assert rates(4) == [2.0] * 5
    assert rates(4, schedule="linear", final_share=0.5) == pytest.approx([2, 1.75, 1.5, 1.25, 1])
    cosine = [0.2 + 1.8 * (1 + math.cos(math.pi * update / 8)) / 2 for update in range(9)]
    assert rates(8, schedule="cosine", final_share=0.1) == pytest.approx(cosine)


def test_warm_up_starts_above_zero_and_reaches_the_peak() -> None:
    assert rates(7, warmup_updates=4) == pytest.approx([0.5, 1, 1.5, 2, 2, 2, 2, 2])
    assert rates(6, warmup_updates=2, schedule="linear") == pytest.approx([1, 2, 2, 1.5, 1, 0.5, 0])
    assert rates(3, warmup_updates=1, schedule="linear") == pytest.approx([2, 2, 1, 0])
    assert rates(3, warmup_updates=6, schedule="cosine") == pytest.approx([2 / 6, 4 / 6, 1, 8 / 6])


@pytest.mark.parametrize("options", [{"learning_rate": -1.0}, {"warmup_updates": -1}])
def test_negative_sizes_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="config.optimizer: learning_rate and warmup_updates must be at least 0"):
        make_schedule(OptimizerConfig(**options), 3)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_updates_are_those_of_adamw(clip_norm: float) -> None:
    config = OptimizerConfig(0.1, "linear", 2, 0.1, 0.8, 0.95, 1e-3, weight_decay=0.3, clip_norm=clip_norm)
    random = np.random.default_rng(0)
    params = {"mlp": {"kernel": random.normal(size=(3, 4))}, "norm": {"scale": random.normal(size=4)}}
    ours, optimizer, schedule = jax.tree.map(np.float32, params), make_optimizer(config, 5), make_schedule(config, 5)
    state, update = optimizer.init(ours), jax.jit(optimizer.update)
    moments = jax.tree.map(lambda p: [0 * p, 0 * p], params)
    for step in range(5):
        gradient = jax.tree.map(lambda p, step=step: random.normal(size=p.shape) * 3**-step, params)
        changes, state = update(jax.tree.map(np.float32, gradient), state, ours)
        ours = optax.apply_updates(ours, changes)
        norm = math.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
        share = min(1.0, clip_norm / norm) if clip_norm else 1.0
        for part, name, decay in (("mlp", "kernel", 0.3), ("norm", "scale", 0.0)):
            p, g, m = params[part][name], share * gradient[part][name], moments[part][name]
            m[:] = 0.8 * m[0] + 0.2 * g, 0.95 * m[1] + 0.05 * g**2
            mean, square = m[0] / (1 - 0.8 ** (step + 1)), m[1] / (1 - 0.95 ** (step + 1))
            params[part][name] = p - float(schedule(step)) * (mean / (np.sqrt(square) + 1e-3) + decay * p)
    chex.assert_trees_all_close(ours, params, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_weight_decay_leaves_norms_alone_and_nothing_else(scan_layers: bool) -> None:
    build = lambda: llama.build(llama.Config(tie_embeddings=False), rngs=nnx.Rngs(0), scan_layers=scan_layers)
    mask = decay_mask(split(nnx.eval_shape(build))[1])
    for path, decays in jax.tree_util.tree_leaves_with_path(mask):
        assert decays == ("norm" not in jax.tree_util.keystr(path))


def test_narrow_parameters_are_the_rounding_of_those_that_float32_would_have() -> None:
    """Steps of a thousandth of a bfloat16 unit would all be lost without the copy."""
    optimizer = make_optimizer(OptimizerConfig(1e-5, weight_decay=0.1), 300)
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.bfloat16)
    params = {"kernel": kernel, "scale": jnp.ones(5, jnp.float32)}
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    state, wide_state = optimizer.init(params), optimizer.init(wide)
    update = jax.jit(optimizer.update)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32", "int32"}
    for step in range(300):
        gradient = jax.tree.map(
            lambda p, step=step: jnp.cos(step + jnp.arange(p.size, dtype=float)).reshape(p.shape) + 0.5, wide
        )
        changes, state = update(gradient, state, params)
        params = optax.apply_updates(params, changes)
        changes, wide_state = update(gradient, wide_state, wide)
        wide = optax.apply_updates(wide, changes)
    assert params["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(params["kernel"], wide["kernel"].astype(jnp.bfloat16))
    np.testing.assert_array_equal(params["scale"], wide["scale"])
    assert (params["kernel"] != kernel).any()
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(wide_state)) + 1  # float32 itself has no copy
