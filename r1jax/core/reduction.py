"""Sums over the last axis, in the form each platform runs fast.

XLA:CPU's own row sums cost as much as the matrix products around them; as a product with ones they cost next to
nothing. Elsewhere the plain sum is the fast form, and the exact one: a TPU's products round to bfloat16.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def row_sums(x: jax.Array) -> jax.Array:
    """x [..., N] float32 -> its sums [...]."""
    by_product = lambda x: x @ jnp.ones(x.shape[-1], x.dtype)
    return jax.lax.platform_dependent(x, cpu=by_product, default=lambda x: x.sum(-1))
