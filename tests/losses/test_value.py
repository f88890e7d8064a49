"""Advantages and the critic's loss against their formulas in float64."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses.value import estimate_advantages, value_loss, whiten

LENGTHS = np.array([4, 1, 7])


def draw(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=LENGTHS.sum()), random.normal(size=LENGTHS.sum())


@pytest.mark.parametrize(("gamma", "decay"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.7), (0.99, 0.0)])
def test_advantages_are_the_papers_weighted_sums(gamma: float, decay: float) -> None:
    """Equation 16 as a sum: A_t = sum over l of (gamma lambda)^l d_{t+l}, within a completion."""
    rewards, values = draw()
    found, returns = estimate_advantages(rewards, values, LENGTHS, gamma=gamma, decay=decay)
    start = 0
    for length in LENGTHS:
        r, v = rewards[start : start + length], [*values[start : start + length], 0.0]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            expected = sum((gamma * decay) ** k * deltas[t + k] for k in range(length - t))
            assert found[start + t] == pytest.approx(expected, rel=1e-12)
            assert returns[start + t] == pytest.approx(expected + v[t], rel=1e-12)
        start += length


def test_with_lambda_one_the_return_is_the_reward_to_come() -> None:
    rewards, values = draw(1)
    _, returns = estimate_advantages(rewards, values, LENGTHS)
    start = 0
    for length in LENGTHS:
        part = rewards[start : start + length]
        np.testing.assert_allclose(returns[start : start + length], np.cumsum(part[::-1])[::-1])
        start += length


def test_whitened_values_have_mean_zero_and_deviation_one_where_they_count() -> None:
    values, _ = draw(2)
    inside = np.arange(len(values)) % 3 > 0
    found = whiten(values, inside)
    assert found[inside].mean() == pytest.approx(0, abs=1e-12) and found[inside].std() == pytest.approx(1, rel=1e-6)
    assert (whiten(values, np.zeros(len(values), bool)) == 0).all()


@pytest.mark.parametrize("clip", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_loss_and_gradient_of_the_critic(dtype: Any, clip: float) -> None:
    random = np.random.default_rng(3)
    weights = np.where(random.uniform(size=(3, 5)) < 0.7, random.uniform(0.5, 1, (3, 5)), 0)
    values, old, returns = (np.where(weights > 0, random.normal(size=(3, 5)), np.nan) for _ in range(3))
    old = np.where(weights > 0, values + random.normal(0, 0.3, (3, 5)), np.nan)
    expected, slope = 0.0, np.zeros((3, 5))
    for at in zip(*np.nonzero(weights), strict=True):
        near = min(max(values[at], old[at] - clip), old[at] + clip) if clip else values[at]
        plain, clipped = (values[at] - returns[at]) ** 2, (near - returns[at]) ** 2
        expected += weights[at] * max(plain, clipped) / 2
        slope[at] = weights[at] * (values[at] - returns[at]) if plain >= clipped else 0.0
    with jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
        arrays = [jnp.asarray(x, dtype) for x in (old, returns, weights)]
        loss = lambda values: value_loss(values, *arrays, clip)
        (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(values, dtype))
    tolerance = 1e-6 if dtype == np.float64 else 1e-5
    assert float(value) == pytest.approx(expected, rel=tolerance)
    np.testing.assert_allclose(gradient, slope, rtol=tolerance, atol=1e-7)
    assert float(sums["tokens"]) == (weights > 0).sum() and ("clipped" in sums) == bool(clip)
    assert float(sums["error"]) == pytest.approx(np.nansum((values - returns) ** 2), rel=1e-5)
