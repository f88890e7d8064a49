"""The clipped surrogate against its formula in float64, token by token, and what must hold exactly."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses.aggregation import token_weights
from r1jax.losses.policy import LOG_RATIO_LIMIT, PolicyLossConfig, policy_loss

CONFIGS = [
    PolicyLossConfig(),
    PolicyLossConfig(clip_low=0.1, clip_high=0.3, kl_coefficient=0.5),
    PolicyLossConfig(clip_low=10.0, clip_high=10.0, kl_coefficient=0.001),
]
B, R = 6, 9


def draw(seed: int = 0) -> dict[str, Any]:
    """A batch with ratios far from 1, advantages of both signs, and padding at the ends of rows and in a whole one."""
    random = np.random.default_rng(seed)
    logprobs = -random.exponential(2, (B, R))
    lengths = np.array([9, 4, 0, 1, 7, 3])
    inside = np.arange(R) < lengths[:, None]
    return {
        "logprobs": logprobs,
        "old_logprobs": logprobs + random.normal(0, 0.4, (B, R)),
        "advantages": np.where(inside, random.normal(size=(B, 1)), 0),
        "weights": np.where(inside, random.uniform(0.5, 1.5, (B, R)), 0) / inside.sum(),
        "reference_logprobs": logprobs + random.normal(0, 0.4, (B, R)),
    }


def by_the_formula(
    batch: dict[str, np.ndarray], config: PolicyLossConfig
) -> tuple[float, np.ndarray, dict[str, float]]:
    """(loss, its gradient by the log-probs, sums of metrics)."""
    loss, gradient, low, high, kl = 0.0, np.zeros((B, R)), 0, 0, 0.0
    for at in zip(*np.nonzero(batch["weights"]), strict=True):
        logp, old, A, weight, ref = (batch[name][at] for name in draw())
        ratio = math.exp(logp - old)
        clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
        k3 = math.exp(ref - logp) - (ref - logp) - 1
        loss += weight * (-min(ratio * A, clipped * A) + config.kl_coefficient * k3)
        is_low, is_high = A < 0 and ratio < 1 - config.clip_low, A > 0 and ratio > 1 + config.clip_high
        slope = 0.0 if is_low or is_high else -ratio * A
        gradient[at] = weight * (slope + config.kl_coefficient * (1 - math.exp(ref - logp)))
        low, high, kl = low + is_low, high + is_high, kl + k3
    sums = {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low + high, "kl": kl}
    return loss, gradient, sums


def run(batch: dict[str, Any], config: PolicyLossConfig) -> tuple[Any, Any, Any]:
    """(loss, gradient by the log-probs, sums) of the package, in float32."""
    batch = {name: np.asarray(value, np.float32) for name, value in batch.items()}
    loss = lambda logprobs, rest: policy_loss(logprobs, config=config, **rest)
    rest = {name: value for name, value in batch.items() if name != "logprobs"}
    (value, sums), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(batch["logprobs"], rest)
    return value, gradient, sums


@pytest.mark.parametrize("config", CONFIGS)
def test_loss_gradient_and_metrics_follow_the_formula(config: PolicyLossConfig) -> None:
    batch = draw()
    loss, gradient, sums = run(batch, config)
    expected, expected_gradient, expected_sums = by_the_formula(batch, config)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-7)
    assert sums.keys() == expected_sums.keys()
    for name, value in expected_sums.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-5, err_msg=name)
    if config.clip_low < 1:
        assert expected_sums["clip_ratio/low_mean"] and expected_sums["clip_ratio/high_mean"]  # both really happened


def test_no_reference_no_kl() -> None:
    batch = draw()
    del batch["reference_logprobs"]
    loss, gradient, sums = run(batch, PolicyLossConfig(kl_coefficient=0.5))
    expected, expected_gradient, _ = by_the_formula(draw(), PolicyLossConfig())
    assert "kl" not in sums
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


def test_on_policy_the_ratio_is_exactly_one() -> None:
    """So the loss is -sum(w A), its gradient -w A to the last bit, and nothing is clipped."""
    batch = draw()
    batch = {name: np.float32(batch[name]) for name in ("logprobs", "advantages", "weights")}

    def loss(logprobs: jax.Array) -> tuple[jax.Array, Any]:
        stopped = jax.lax.stop_gradient(logprobs)
        return policy_loss(logprobs, stopped, batch["advantages"], batch["weights"], PolicyLossConfig())

    (value, sums), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(batch["logprobs"])
    np.testing.assert_array_equal(gradient, -batch["weights"] * batch["advantages"])
    np.testing.assert_allclose(value, -(batch["weights"] * batch["advantages"]).sum(), rtol=1e-6)
    assert all(value == 0 for value in sums.values())


def test_advantage_zero_gives_gradient_exactly_zero() -> None:
    batch = {**draw(), "advantages": np.zeros((B, R))}
    del batch["reference_logprobs"]
    loss, gradient, _ = run(batch, PolicyLossConfig())
    assert loss == 0 and (np.asarray(gradient) == 0).all()


def test_kl_to_the_same_policy_is_nothing() -> None:
    batch = draw()
    same = {**batch, "reference_logprobs": batch["logprobs"]}
    _, gradient, sums = run(same, PolicyLossConfig(kl_coefficient=1.0))
    assert sums["kl"] == 0
    np.testing.assert_allclose(gradient, by_the_formula(batch, PolicyLossConfig())[1], rtol=1e-4, atol=1e-7)
    noise = np.random.default_rng(1).normal(0, 2e-6, (B, R))  # what two programs of the same weights differ by
    _, _, sums = run({**batch, "reference_logprobs": batch["logprobs"] + noise}, PolicyLossConfig(kl_coefficient=1.0))
    assert 0 <= sums["kl"] / (batch["weights"] > 0).sum() < 1e-10


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("name", ["logprobs", "old_logprobs", "reference_logprobs", "advantages"])
def test_garbage_at_padding_changes_nothing(name: str, garbage: float) -> None:
    batch, config = draw(), CONFIGS[1]
    spoiled = {**batch, name: np.where(batch["weights"] > 0, batch[name], garbage)}
    found, expected = run(spoiled, config), run(batch, config)
    chex.assert_trees_all_equal(found, expected)
    assert (np.asarray(found[1])[batch["weights"] == 0] == 0).all()


@pytest.mark.parametrize("gap", [1e3, -1e3])
def test_ratios_beyond_all_measure_stay_finite(gap: float) -> None:
    batch = draw()
    batch["old_logprobs"] = batch["logprobs"] - gap
    batch["reference_logprobs"] = batch["logprobs"] + gap
    loss, gradient, sums = run(batch, CONFIGS[1])
    assert np.isfinite(loss) and np.isfinite(gradient).all() and all(np.isfinite(value) for value in sums.values())
    assert abs(float(loss)) < 2 * math.exp(LOG_RATIO_LIMIT)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_parts_of_an_update_add_up_to_its_loss(aggregation: Any) -> None:
    """The mean over tokens, or over sequences of their token means, whatever the cut into micro-batches."""
    batch, config = draw(), PolicyLossConfig()
    del batch["reference_logprobs"]
    lengths = np.array([9, 4, 2, 1, 7, 3])
    inside = np.arange(R) < lengths[:, None]
    batch["advantages"] = np.where(inside, np.random.default_rng(2).normal(size=(B, 1)), 0)
    batch["weights"] = np.where(inside, token_weights(lengths, aggregation)[:, None], 0)
    ratio = np.exp(batch["logprobs"] - batch["old_logprobs"])
    per_token = -np.minimum(ratio * batch["advantages"], np.clip(ratio, 0.8, 1.2) * batch["advantages"]) * inside
    rows = per_token.sum(1) / (lengths if aggregation == "sequence" else 1)
    expected = rows.mean() if aggregation == "sequence" else rows.sum() / lengths.sum()
    for cut in ([6], [3, 3], [1, 2, 3]):
        edges = np.cumsum([0, *cut])
        parts = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        losses = [run({name: value[part] for name, value in batch.items()}, config)[0] for part in parts]
        np.testing.assert_allclose(sum(float(loss) for loss in losses), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["old_logprobs", "advantages", "weights", "reference_logprobs"])
def test_arrays_of_another_shape_are_refused_while_tracing(name: str) -> None:
    """A column would be broadcast in silence, and the loss be another one."""
    batch = draw()
    with pytest.raises(AssertionError, match=r"must be \[B, R\], a value for each target"):
        jax.eval_shape(lambda batch: policy_loss(config=CONFIGS[0], **batch), batch | {name: batch[name][:, :1]})
