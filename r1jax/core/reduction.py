"""Sums over the last axis, in the form each platform runs fast.

XLA:CPU's own row sums cost as much as the matrix products around them; as a product with ones they cost next to
nothing. A product adds one number after the other, and what is far below the sum so far is lost: over a vocabulary the
tail of a softmax would be. So long rows are summed in blocks first. Elsewhere the plain sum is the fast form, and the
exact one: a TPU's products round to bfloat16.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_BLOCKS = (512, 256, 128, 64)


def row_sums(x: jax.Array) -> jax.Array:
    """x [..., N] float32 -> its sums [...]."""
    return jax.lax.platform_dependent(x, cpu=_sum_by_product, default=lambda x: x.sum(-1))


def _sum_by_product(x: jax.Array) -> jax.Array:
    size = x.shape[-1]
    if size > 2 * _BLOCKS[0]:
        block = next((block for block in _BLOCKS if size % block == 0), None)
        if block is None:
            return x.sum(-1)
        x = (x.reshape(-1, block) @ jnp.ones(block, x.dtype)).reshape(*x.shape[:-1], size // block)
    return x @ jnp.ones(x.shape[-1], x.dtype)
