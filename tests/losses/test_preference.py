"""The losses of preferences against the papers' formulas in float64, pair by pair, with their slopes."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses.preference import (
    METHODS,
    PreferenceConfig,
    RewardLossConfig,
    bradley_terry_loss,
    preference_loss,
)

PAIRS = 12


def draw(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(log-probs, lengths, log-probs of the reference) [pairs, 2], the policy away from its reference."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 9, (PAIRS, 2))
    logps = -lengths * random.exponential(1.5, (PAIRS, 2))
    return logps, lengths, logps + random.normal(0, 3, (PAIRS, 2))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def odds(x: float) -> float:
    return x - math.log(1 - math.exp(x))


def by_the_formula(method: str, pair: np.ndarray, lengths: np.ndarray, reference: np.ndarray, kl: float) -> float:
    (c, r), (c0, r0), (n, m) = pair, reference, lengths
    h = (c - c0) - (r - r0)
    if method == "dpo":
        return -math.log(sigmoid(0.1 * h))
    if method == "cdpo":
        return -0.9 * math.log(sigmoid(0.1 * h)) - 0.1 * math.log(sigmoid(-0.1 * h))
    if method == "ipo":
        return ((c - c0) / n - (r - r0) / m - 1 / (2 * 0.1)) ** 2
    if method == "kto":
        return 1 - sigmoid(0.1 * (c - c0 - kl)) + 1 - sigmoid(0.1 * (kl - r + r0))
    if method == "orpo":
        return -c / n - 0.1 * math.log(sigmoid(odds(c / n) - odds(r / m)))
    assert method == "simpo"
    return -math.log(sigmoid(2.0 * (c / n - r / m) - 1.0))


def slope(function: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """The gradient by central differences."""
    gradient = np.zeros(at.shape)
    for place in np.ndindex(at.shape):
        step = np.zeros(at.shape)
        step[place] = 1e-5
        gradient[place] = (function(at + step) - function(at - step)) / 2e-5
    return gradient


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradient_follow_the_paper(method: str, dtype: Any) -> None:
    config = PreferenceConfig(type=method, **METHODS[method])
    logps, lengths, reference = draw()
    kl, tolerance = 0.7, 1e-6 if dtype == np.float64 else 1e-5
    expected = [by_the_formula(method, *row, kl) for row in zip(logps, lengths, reference, strict=True)]
    slopes = np.array(
        [
            slope(lambda pair, row=row: by_the_formula(method, pair, *row, kl), pair)
            for pair, *row in zip(logps, lengths, reference, strict=True)
        ]
    )
    with jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
        arrays = [jnp.asarray(array, dtype) for array in (logps, lengths, reference)]

        def total(logps: jax.Array) -> tuple[jax.Array, Any]:
            loss, metrics = preference_loss(logps, arrays[1], config, reference=arrays[2], kl=kl)
            return loss.sum(), (loss, metrics)

        (_, (losses, metrics)), gradient = jax.value_and_grad(total, has_aux=True)(arrays[0])
    assert losses.dtype == dtype and metrics["rewards"].shape == (PAIRS, 2)
    np.testing.assert_allclose(losses, expected, rtol=tolerance)
    assert np.linalg.norm(gradient - slopes) <= tolerance * np.linalg.norm(slopes)
    normal = lengths if method in ("ipo", "orpo", "simpo") else 1
    implied = config.beta * (logps - reference * config.needs_reference) / normal
    np.testing.assert_allclose(metrics["rewards"], implied, rtol=1e-4)


def test_the_chosen_texts_own_loss_is_added_per_token() -> None:
    logps, lengths, reference = draw(1)
    plain, metrics = preference_loss(logps, lengths, PreferenceConfig(), reference=reference)
    added, _ = preference_loss(logps, lengths, PreferenceConfig(nll_weight=0.5), reference=reference)
    np.testing.assert_allclose(added - plain, -0.5 * logps[:, 0] / lengths[:, 0], rtol=1e-4)
    np.testing.assert_allclose(metrics["nll"], -logps[:, 0] / lengths[:, 0], rtol=1e-5)


def test_a_length_normalized_dpo_divides_by_lengths() -> None:
    logps, lengths, reference = draw(2)
    found, _ = preference_loss(logps, lengths, PreferenceConfig(length_normalized=True), reference=reference)
    mean = (logps - reference) / lengths
    np.testing.assert_allclose(found, np.log1p(np.exp(-0.1 * (mean[:, 0] - mean[:, 1]))), rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_infinite_at_the_ends(method: str) -> None:
    """Log-probs of 0, of no token, and far from the reference."""
    config = PreferenceConfig(type=method, **METHODS[method])
    logps = jnp.array([[0.0, 0.0], [0.0, -1e4], [-1e4, 0.0]])
    lengths = jnp.array([[0, 0], [1, 10], [10, 1]])
    total = lambda logps: preference_loss(logps, lengths, config, reference=jnp.zeros((3, 2)))[0].sum()
    value, gradient = jax.value_and_grad(total)(logps)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_a_reference_is_required_where_it_is_compared() -> None:
    logps, lengths, _ = draw()
    with pytest.raises(ValueError, match="dpo needs the log-probs of a reference"):
        preference_loss(logps, lengths, PreferenceConfig())


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_reward_models_loss_is_that_of_bradley_and_terry(dtype: Any) -> None:
    random, config = np.random.default_rng(3), RewardLossConfig(center_coefficient=0.01)
    scores, margins = random.normal(0, 3, (PAIRS, 2)), random.uniform(0, 1, PAIRS)
    formula = lambda s, m: -math.log(sigmoid(s[0] - s[1] - m)) + 0.01 * (s[0] + s[1]) ** 2
    expected = [formula(*row) for row in zip(scores, margins, strict=True)]
    slopes = np.array([slope(lambda s, m=m: formula(s, m), s) for s, m in zip(scores, margins, strict=True)])
    tolerance = 1e-6 if dtype == np.float64 else 1e-5
    with jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
        total = lambda scores: bradley_terry_loss(scores, jnp.asarray(margins, dtype), config).sum()
        gradient = jax.grad(total)(jnp.asarray(scores, dtype))
        found = bradley_terry_loss(jnp.asarray(scores, dtype), jnp.asarray(margins, dtype), config)
    np.testing.assert_allclose(found, expected, rtol=tolerance)
    assert np.linalg.norm(gradient - slopes) <= tolerance * np.linalg.norm(slopes)
    plain = bradley_terry_loss(jnp.asarray(scores, np.float32), 5.0, RewardLossConfig(use_margin=False))
    np.testing.assert_allclose(plain, np.log1p(np.exp(scores[:, 1] - scores[:, 0])), rtol=1e-4)
