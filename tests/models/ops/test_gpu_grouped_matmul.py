"""The grouped products for GPUs, interpreted, against the loop over blocks."""

import jax.numpy as jnp
import numpy as np

from r1jax.models.ops.gpu_grouped_matmul import fits
from r1jax.models.ops.grouped_matmul import multiply_in_blocks, multiply_on_gpu, outer_in_blocks, outer_on_gpu

E, N, D, F = 4, 200, 64, 128
SIZES = jnp.asarray([70, 0, 1, 100])  # an expert without rows, and rows behind the last group


def test_products_and_outer_products_agree_with_the_loop() -> None:
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    rows, kernels, grad = draw(N, D), draw(E, D, F), draw(N, F)
    for array, transposed in ((rows, False), (grad, True)):
        found = multiply_on_gpu(array, kernels, SIZES, transposed=transposed, interpret=True)
        expected = multiply_in_blocks(array, kernels, SIZES, transposed=transposed)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    found, expected = outer_on_gpu(rows, grad, SIZES, interpret=True), outer_in_blocks(rows, grad, SIZES)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_kernels_take_whole_tiles_of_16_bits() -> None:
    rows = jnp.zeros((N, D), jnp.bfloat16)
    assert fits(rows, D, F) and not fits(rows, D, 96) and not fits(rows.astype(jnp.float32), D, F)
