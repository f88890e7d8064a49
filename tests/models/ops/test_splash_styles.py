"""The splash kernel with windows, soft caps and sinks against blocks of queries with a stored mask."""

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.attention import attend
from r1jax.models.ops.blockwise_attention import Segments, attend_blocks
from r1jax.models.ops.splash import attend_causal

B, T, N, K, H, FIRST = 1, 256, 2, 2, 128, 100


@pytest.mark.slow
@pytest.mark.parametrize("style", ["window", "cap", "sinks"])
def test_kernel_and_blocks_agree(style: str) -> None:
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    q, k, v = draw(B, T, N, H), draw(B, K, T, H), draw(B, K, T, H)
    shape = {"window": {}, "cap": {"cap": 5.0}, "sinks": {"sinks_N": draw(N)}}[style]
    place = np.arange(T)
    ids = jnp.asarray(np.where(place < FIRST, 1, 2)[None])
    positions = jnp.asarray(np.where(place < FIRST, place, place - FIRST)[None])
    found = attend_causal(q, k, v, ids, scale=0.1, window=40, interpret=True, **shape)
    segments = Segments(ids, None, positions, 40)
    expected = attend_blocks(attend, q, k, v, segments, None, scale=0.1, block=32, **shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
