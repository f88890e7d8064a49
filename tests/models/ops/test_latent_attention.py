"""The kernel for latents against plain softmax attention, on one device and with rows on eight."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.models.ops.blockwise_attention import NEGATIVE
from r1jax.models.ops.latent_attention import attend_latents, find_block
from r1jax.models.ops.softmax_attention import attend_heads

B, N, C, S, L = 8, 4, 48, 256, 2
SCALE = 0.13


def draw(dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, latents of two layers, and a bias that shows one row a single column and another one all."""
    random = np.random.default_rng(0)
    visible = random.random((B, S)) < 0.5
    visible[0], visible[1] = np.arange(S) == 200, True
    query, latents = (jnp.asarray(random.normal(size=shape), dtype) for shape in ((B, N, C), (L, B, S, C)))
    return query, latents, jnp.where(visible, 0.0, NEGATIVE).astype(jnp.float32)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("mesh", [None, MeshConfig(data=4, tensor=2)], ids=["one device", "mesh"])
def test_it_is_softmax_attention(dtype: str, tolerance: float, mesh: MeshConfig | None) -> None:
    query, latents, bias = draw(dtype)
    layer = latents[1][:, None]
    expected = attend_heads(query[:, None], layer, layer, bias[:, None], SCALE)[:, 0]
    run = lambda *args: attend_latents(*args, SCALE, query_axes=("batch", "heads"), interpret=True)
    if mesh is None:
        found = run(query, latents, jnp.int32(1), bias)
    else:
        with use_mesh(make_mesh(mesh)):
            found = jax.jit(run)(query, latents, jnp.int32(1), bias)
    assert found.dtype == query.dtype
    np.testing.assert_allclose(found.astype(jnp.float32), expected.astype(jnp.float32), rtol=0, atol=tolerance)


def test_columns_pass_through_in_the_largest_block_that_divides() -> None:
    assert [find_block(columns) for columns in (8192, 768, 384, 100)] == [1024, 256, 128, 0]
