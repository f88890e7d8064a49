"""Matrix products whose backward pass is two more plain matrix products.

Autodiff's backward pass leaves a transposition that makes XLA:CPU compute the inputs of the product in a transposed
layout, several times slower. The hand-written backward pass works on rows, [rows, in] and [rows, out], and transposes
only the kernel.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

Places = tuple[NamedSharding, NamedSharding] | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def multiply(x: jax.Array, kernel: jax.Array, places: Places = None) -> jax.Array:
    """x [..., in] @ kernel [in, out] -> [..., out].

    places: shardings in which the kernel is multiplied and in which it is kept (core/sharding.py, `gather_places`): it
    is gathered in either pass, in its own dtype, and its gradient is reduced to the shards. None: as the compiler
    likes, which for a kernel split along `in` may add partial products of all rows.
    """
    return x @ _place(kernel, places, 0)


def _multiply_forward(x: jax.Array, kernel: jax.Array, places: Places) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ _place(kernel, places, 0), (x, kernel)


def _multiply_backward(
    places: Places, saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    return (grad_rows @ _place(kernel, places, 0).T).reshape(x.shape), _place(rows.T @ grad_rows, places, 1)


def _place(kernel: jax.Array, places: Places, which: int) -> jax.Array:
    return kernel if places is None else jax.lax.with_sharding_constraint(kernel, places[which])


multiply.defvjp(_multiply_forward, _multiply_backward)


@jax.custom_vjp
def multiply_table(x: jax.Array, table: jax.Array) -> jax.Array:
    """x [..., D] times the transposed table [V, D] -> float32 [..., V], also for narrower dtypes."""
    return jnp.einsum("...D,VD->...V", x, table, preferred_element_type=jnp.float32)


def _multiply_table_forward(x: jax.Array, table: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return multiply_table(x, table), (x, table)


def _multiply_table_backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, table = saved
    rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1]).astype(x.dtype)
    return (grad_rows @ table).reshape(x.shape), grad_rows.T @ rows


multiply_table.defvjp(_multiply_table_forward, _multiply_table_backward)
