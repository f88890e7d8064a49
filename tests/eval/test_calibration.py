"""Calibration over drawn pairs whose probabilities are known."""

import numpy as np
import pytest

from r1jax.eval.calibration import measure_calibration


def draw(pairs: int, trust: float) -> np.ndarray:
    """Scores of pairs, a text preferred with the probability that `trust` 1 tells; others trust themselves too much."""
    random = np.random.default_rng(0)
    scores = random.normal(0, 2, (pairs, 2))
    is_first = random.uniform(size=pairs) < 1 / (1 + np.exp(-(scores[:, 0] - scores[:, 1])))
    return trust * np.where(is_first[:, None], scores, scores[:, ::-1])


def test_true_probabilities_are_calibrated():
    found = measure_calibration(draw(20_000, 1.0))
    assert found.pairs == 20_000 and found.is_calibrated and found.error < 0.02
    assert len(found.tenths) == 10 and sum(tenth["pairs"] for tenth in found.tenths) == 20_000
    for tenth in found.tenths:
        assert tenth["low"] <= tenth["predicted"] <= tenth["high"]
        assert tenth["observed"] == pytest.approx(tenth["predicted"], abs=max(0.05, 3 * tenth["stderr"]))


@pytest.mark.parametrize("trust", [0.3, 4.0])
def test_scores_that_trust_themselves_too_little_or_too_much_are_not(trust: float):
    found = measure_calibration(draw(20_000, trust))
    assert not found.is_calibrated and found.error > 0.05


def test_pairs_without_scores_are_none():
    found = measure_calibration(np.full((1, 2), np.nan))
    assert found.pairs == 0 and np.isnan(found.error) and found.is_calibrated
    assert measure_calibration(np.array([[1e6, -1e6]])).tenths[0]["pairs"] == 1
