"""The product with kernels inside a stack against the grouped product of the layer's own kernels."""

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.ops.grouped_matmul import grouped_matmul
from r1jax.models.ops.stacked_matmul import find_tile, fits, multiply_in_stack

L, E, D, F = 3, 4, 256, 384


@pytest.mark.parametrize("sizes", [(5, 0, 17, 8), (0, 0, 0, 0), (40, 0, 0, 0), (0, 0, 0, 3)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.2)])
def test_it_is_the_grouped_product_of_the_layer(sizes: tuple[int, ...], dtype: str, tolerance: float) -> None:
    """Rows after the last group give zeros."""
    random = np.random.default_rng(0)
    rows, stack = (jnp.asarray(random.normal(size=shape), dtype) for shape in ((40, D), (L, E, D, F)))
    found = multiply_in_stack(rows, stack, jnp.int32(2), jnp.array(sizes), interpret=True)
    expected = grouped_matmul(rows, stack[2], jnp.array(sizes))
    assert found.dtype == rows.dtype and found.shape == (40, F)
    np.testing.assert_allclose(found.astype(jnp.float32), expected.astype(jnp.float32), rtol=0, atol=tolerance)
    assert not np.any(found[sum(sizes) :])


def test_it_takes_few_rows_and_widths_that_tiles_divide() -> None:
    assert [find_tile(width) for width in (7168, 768, 2304, 128, 100)] == [1024, 768, 256, 128, 0]
    stack = jnp.zeros((1, 2, 128, 128), jnp.bfloat16)
    assert fits(jnp.zeros((1024, 128), jnp.bfloat16), stack)
    assert not fits(jnp.zeros((1040, 128), jnp.bfloat16), stack)
    assert not fits(jnp.zeros((16, 128), jnp.float32), stack)
