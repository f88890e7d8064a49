"""The kernel for a cache against plain softmax attention, on one device and with rows and heads on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.models.ops.blockwise_attention import NEGATIVE
from r1jax.models.ops.cached_attention import attend_cache, fits
from r1jax.models.ops.softmax_attention import attend_heads

L, B, K, M, H, S = 2, 8, 2, 8, 128, 256


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("mesh", [None, MeshConfig(data=4, tensor=2)], ids=["one device", "mesh"])
def test_it_is_softmax_attention(dtype: str, tolerance: float, mesh: MeshConfig | None) -> None:
    random = np.random.default_rng(0)
    visible = random.random((B, S)) < 0.5
    visible[0], visible[1] = np.arange(S) == 200, True
    shapes = (B, K * M, H), (L, B, K, H, S), (L, B, K, S, H)
    query, keys, values = (jnp.asarray(random.normal(size=shape), dtype) for shape in shapes)
    bias = jnp.where(visible, 0.0, NEGATIVE).astype(jnp.float32)
    expected = attend_heads(
        query.reshape(B, K, M, H), keys[1].swapaxes(2, 3), values[1], bias[:, None], H**-0.5
    ).reshape(B, K * M, H)
    run = lambda *args: attend_cache(*args, interpret=True)
    if mesh is None:
        found = run(query, keys, values, jnp.int32(1), bias)
    else:
        with use_mesh(make_mesh(mesh)):
            found = jax.jit(run)(query, keys, values, jnp.int32(1), bias)
    assert found.dtype == query.dtype
    np.testing.assert_allclose(found.astype(jnp.float32), expected.astype(jnp.float32), rtol=0, atol=tolerance)


def test_it_takes_several_heads_that_fill_registers() -> None:
    keys = lambda heads, width=128, columns=256: jnp.zeros((1, 1, heads, width, columns), jnp.bfloat16)
    values = jnp.zeros((1, 1, 2, 256, 128), jnp.bfloat16)
    assert fits(16, keys(2), values)
    assert not fits(12, keys(2), values) and not fits(16, keys(1), values)
    assert not fits(16, keys(2, width=64), values) and not fits(16, keys(2, columns=100), values)
    assert not fits(16, keys(2).astype(jnp.float32), values)
