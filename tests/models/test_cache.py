"""Where new tokens are written and what they may see, against the rule said in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.cache import Cache, append, cache_mask


def test_append_writes_only_its_columns() -> None:
    buffer, new = np.ones((2, 3, 6, 4), np.float32), np.full((2, 3, 2, 4), 5.0)
    found = np.asarray(jax.jit(append, static_argnames="axis")(buffer, new, jnp.int32(3), axis=2))
    assert found.dtype == np.float32
    assert (found[:, :, 3:5] == 5).all() and (np.delete(found, [3, 4], axis=2) == 1).all()


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("column", [0, 2, 5])
def test_rows_see_their_visible_columns_and_causally_the_new_ones(tokens: int, column: int) -> None:
    visible = np.random.default_rng(0).random((4, 8)) < 0.5
    cache = Cache(None, jnp.asarray(visible), jnp.int32(column))
    mask, after = (np.asarray(x) for x in cache_mask(cache, tokens))
    assert cache.length == 8 and mask.shape == (4, tokens, 8)
    written = range(column, column + tokens)
    for b, t, s in np.ndindex(mask.shape):  # a column written anew holds the new token: what was there is gone
        assert mask[b, t, s] == (s <= column + t if s in written else visible[b, s])
        assert after[b, s] == (s in written or visible[b, s])
