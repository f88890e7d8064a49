"""Weights of tokens: what they sum to, and what is left out."""

from typing import Any

import numpy as np
import pytest

from r1jax.losses.aggregation import token_weights

LENGTHS = np.array([5, 1, 12, 3])


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token", [1 / 21] * 4),
        ("sequence", [1 / 20, 1 / 4, 1 / 48, 1 / 12]),
        ("constant", [1 / 80] * 4),
    ],
)
def test_weights_of_an_update(aggregation: Any, expected: list[float]) -> None:
    weights = token_weights(LENGTHS, aggregation, constant=20)
    np.testing.assert_allclose(weights, expected)
    if aggregation != "constant":
        assert np.isclose((weights * LENGTHS).sum(), 1)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_what_is_left_out_is_in_no_denominator(aggregation: Any) -> None:
    excluded = np.array([False, True, False, True])
    weights = token_weights(LENGTHS, aggregation, constant=20, excluded=excluded)
    alone = token_weights(LENGTHS[~excluded], aggregation, constant=20)
    np.testing.assert_array_equal(weights[~excluded], alone)
    assert (weights[excluded] == 0).all()


def test_the_constant_length_knows_no_lengths() -> None:
    """So a completion's token weighs the same however long its completion is (Dr. GRPO)."""
    weights = token_weights(LENGTHS, "constant", constant=20)
    np.testing.assert_array_equal(weights, token_weights(LENGTHS[::-1] * 7, "constant", constant=20))


def test_weights_of_nothing_are_finite() -> None:
    assert np.isfinite(token_weights(np.array([0, 0]), "token")).all()
    assert np.isfinite(token_weights(np.array([0, 3]), "sequence")).all()
    assert token_weights(np.array([], int), "sequence").shape == (0,)
    assert (token_weights(LENGTHS, "token", excluded=np.ones(4, bool)) == 0).all()
