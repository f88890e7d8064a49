"""Row sums against float64: as exact as pairwise sums, over short rows and over vocabularies."""

import jax
import numpy as np
import pytest

from r1jax.core.reduction import row_sums


@pytest.mark.parametrize("size", [1, 3, 280, 576, 1_024, 1_537, 49_152, 151_936])
def test_row_sums_keep_their_digits(size: int) -> None:
    rows = np.exp(4 * np.random.default_rng(size).standard_normal((2, 3, size))).astype(np.float32)
    got = np.asarray(jax.jit(row_sums)(rows))
    want = rows.astype(np.float64).sum(-1)
    assert got.shape == (2, 3)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_large_number_does_not_swallow_a_vocabulary_of_small_ones() -> None:
    """The softmax of a sure model: one 1 and many 1e-8, which a running sum would drop one by one."""
    rows = np.full((4, 49_152), 1e-8, np.float32)
    rows[:, 0] = 1.0
    np.testing.assert_allclose(np.asarray(jax.jit(row_sums)(rows)), rows.astype(np.float64).sum(-1), rtol=1e-5)
