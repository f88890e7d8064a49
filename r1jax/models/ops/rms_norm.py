"""Root-mean-square normalization (Zhang and Sennrich 2019), with a backward pass that stores one factor per row.

Autodiff stores every intermediate of the width of x and uses the row sums that XLA:CPU runs slowest; here the sums are
those of core/reduction.py.
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp

from r1jax.core.reduction import row_sums


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def normalize(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """x [..., D] / sqrt(mean(x^2) + epsilon) * scale [D]; float32 in and out."""
    return _normalize_forward(x, scale, epsilon)[0]


def _normalize_forward(x: jax.Array, scale: jax.Array, epsilon: float) -> tuple[jax.Array, tuple]:
    chex.assert_shape(scale, x.shape[-1:], custom_message="the scale of a norm must be [D] for x [..., D]")
    factor = jax.lax.rsqrt(row_sums(jnp.square(x)) / x.shape[-1] + epsilon)[..., None]
    return x * factor * scale, (x, factor, scale)


def _normalize_backward(epsilon: float, saved: tuple, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, factor, scale = saved
    normed, inner = x * factor, grad * scale
    along = row_sums(inner * normed)[..., None] / x.shape[-1]
    return factor * (inner - normed * along), (grad * normed).sum(range(x.ndim - 1))


normalize.defvjp(_normalize_forward, _normalize_backward)
