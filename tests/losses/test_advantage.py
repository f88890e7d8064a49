"""Group advantages against the formula, group by group."""

import numpy as np
import pytest

from r1jax.losses.advantage import group_advantages


def test_each_group_is_centred_and_scaled_by_its_sample_deviation() -> None:
    rewards = np.random.default_rng(0).normal(size=(5, 4)) * [[1], [10], [0.1], [3], [0.01]]
    advantages, flat = group_advantages(rewards)
    for group, found in zip(rewards, advantages, strict=True):
        mean = sum(group) / 4
        deviation = (sum((r - mean) ** 2 for r in group) / 3) ** 0.5
        np.testing.assert_allclose(found, [(r - mean) / (deviation + 1e-4) for r in group], rtol=1e-12)
    assert advantages.dtype == np.float64 and not flat.any()


def test_groups_of_equal_rewards_have_advantage_exactly_zero() -> None:
    third = [0.1 + 0.2, 0.3, 0.3, 0.3]  # equal but for rounding
    advantages, flat = group_advantages(np.array([[1, 1, 1, 1], [0, 1, 0, 0], third]))
    assert flat.tolist() == [True, False, True]
    assert (advantages[[0, 2]] == 0).all() and (advantages[1] != 0).all()


def test_threshold_of_spread() -> None:
    rewards = np.array([[0, 1.0], [0, 2.0]]) * 1e-3 / 2**0.5  # sample deviations 0.5e-3 and 1e-3
    assert group_advantages(rewards * 1.001)[1].tolist() == [True, False]
    assert group_advantages(rewards, min_group_std=1e-4)[1].tolist() == [False, False]
    assert group_advantages(rewards, min_group_std=0.1)[1].tolist() == [True, True]


def test_an_answer_that_no_reward_applies_to_takes_no_part() -> None:
    """The others are compared with each other; where fewer than two are left there is nothing to compare."""
    rewards = np.array([[np.nan, 1.0, 0.0, 0.5], [0.0, 1.0, 0.0, 0.3], [np.nan, np.nan, np.nan, 1.0]])
    for baseline in ("group", "leave_one_out"):
        advantages, flat = group_advantages(rewards, baseline=baseline)
        alone, _ = group_advantages(rewards[:1, 1:], baseline=baseline)
        assert flat.tolist() == [False, False, True]
        np.testing.assert_allclose(advantages[0], [0, *alone[0]])
        assert (advantages[2] == 0).all() and np.isfinite(advantages).all()


def test_other_baselines_and_scales() -> None:
    rewards = np.random.default_rng(1).normal(size=(5, 4)) * [[1], [10], [0.1], [3], [0.01]]
    found, _ = group_advantages(rewards, scale="none")
    np.testing.assert_allclose(found, rewards - rewards.mean(1, keepdims=True))
    found, _ = group_advantages(rewards, baseline="leave_one_out", scale="none")
    others = [[np.delete(group, g).mean() for g in range(4)] for group in rewards]
    np.testing.assert_allclose(found, rewards - others)
    found, _ = group_advantages(rewards, baseline="batch", scale="batch")
    np.testing.assert_allclose(found, (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4))
    found, _ = group_advantages(rewards, scale="batch")
    centred = rewards - rewards.mean(1, keepdims=True)
    np.testing.assert_allclose(found, centred / (centred.std(ddof=1) + 1e-4))


def test_one_completion_has_nothing_to_be_compared_with() -> None:
    with pytest.raises(ValueError, match="groups of at least 2"):
        group_advantages(np.ones((3, 1)))
