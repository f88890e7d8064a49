"""How tokens get to their experts and back: one signature, several ways, the same numbers.

    dispatch(x [B, T, D], choice [B, T, A], weights [B, T, A], kernels) -> [B, T, D]

the sum over a token's A chosen experts of weight * down(silu(gate(x)) * up(x)). A choice of E or more is no expert:
padding tokens have only such, cost nothing and get zeros. No token is dropped.

dense      every expert on every token, then the chosen ones; the reference, and no cheaper than it sounds.
grouped    rows sorted by expert, one matrix product by groups (models/grouped.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.core.errors import UserError
from r1jax.models.grouped import grouped_matmul
from r1jax.models.layers import gate_silu


class Kernels(NamedTuple):
    """What the experts are: gate and up [E, D, F], down [E, F, D]."""

    gate: jax.Array
    up: jax.Array
    down: jax.Array


Dispatch = Callable[[jax.Array, jax.Array, jax.Array, Kernels], jax.Array]


def find_dispatch(name: str) -> Dispatch:
    """The way of that name. Raises UserError if there is none."""
    if name not in DISPATCHES:
        raise UserError(f"dispatch {name!r} is not known; known: {', '.join(DISPATCHES)}")
    return DISPATCHES[name]


def dense(x_BTD: jax.Array, choice_BTA: jax.Array, weights_BTA: jax.Array, kernels: Kernels) -> jax.Array:
    """All experts on all tokens."""
    chosen_BTAE = choice_BTA[..., None] == jnp.arange(len(kernels.gate))
    weights_BTE = jnp.where(chosen_BTAE, weights_BTA[..., None], 0).sum(-2)
    gate, up = (jnp.einsum("BTD,EDF->BTEF", x_BTD, kernel) for kernel in kernels[:2])
    out_BTED = jnp.einsum("BTEF,EFD->BTED", gate_silu(gate, up), kernels.down)
    return jnp.einsum("BTED,BTE->BTD", out_BTED.astype(jnp.float32), weights_BTE).astype(x_BTD.dtype)


def grouped(x_BTD: jax.Array, choice_BTA: jax.Array, weights_BTA: jax.Array, kernels: Kernels) -> jax.Array:
    """Rows sorted by expert; N = B * T * A of them, those of no expert last."""
    *rows, width = x_BTD.shape
    expert_N = choice_BTA.reshape(-1)
    order_N = jnp.argsort(expert_N, stable=True)
    places_MA = jnp.zeros_like(order_N).at[order_N].set(jnp.arange(len(order_N))).reshape(-1, choice_BTA.shape[-1])
    sizes_E = count_rows(expert_N, len(kernels.gate))
    out_ND = run_experts(spread(x_BTD.reshape(-1, width), order_N, places_MA), sizes_E, kernels)
    out_MAD = collect(out_ND, order_N, places_MA).astype(jnp.float32)
    y_MD = (out_MAD * weights_BTA.reshape(*places_MA.shape, 1)).sum(1)
    return y_MD.astype(x_BTD.dtype).reshape(*rows, width)


DISPATCHES: dict[str, Dispatch] = {"dense": dense, "grouped": grouped}


def run_experts(rows_ND: jax.Array, sizes_E: jax.Array, kernels: Kernels) -> jax.Array:
    """Rows in groups by expert through their experts."""
    gate, up = (grouped_matmul(rows_ND, kernel, sizes_E) for kernel in kernels[:2])
    return grouped_matmul(gate_silu(gate, up), kernels.down, sizes_E)


def count_rows(expert_N: jax.Array, experts: int) -> jax.Array:
    """[E]: how many rows each expert has; numbers of E and more are nobody's."""
    return (expert_N[:, None] == jnp.arange(experts)).sum(0, dtype=jnp.int32)


# A permutation's gradient is the opposite permutation; autodiff would add up rows one by one instead.


@jax.custom_vjp
def spread(x_MD: jax.Array, order_N: jax.Array, places_MA: jax.Array) -> jax.Array:
    """Row n is the token of pair order[n] of (token, choice); places holds where each pair went."""
    return x_MD[order_N // places_MA.shape[1]]


def _spread_forward(x: jax.Array, order: jax.Array, places: jax.Array) -> tuple[jax.Array, jax.Array]:
    return spread(x, order, places), places


def _spread_backward(places: jax.Array, grad: jax.Array) -> tuple[jax.Array, None, None]:
    return grad[places].astype(jnp.float32).sum(1).astype(grad.dtype), None, None


spread.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def collect(rows_ND: jax.Array, order_N: jax.Array, places_MA: jax.Array) -> jax.Array:
    """[M, A, D]: the rows of each token, in the order of its choices."""
    return rows_ND[places_MA]


def _collect_forward(rows: jax.Array, order: jax.Array, places: jax.Array) -> tuple[jax.Array, jax.Array]:
    return collect(rows, order, places), order


def _collect_backward(order: jax.Array, grad: jax.Array) -> tuple[jax.Array, None, None]:
    return grad.reshape(-1, grad.shape[-1])[order], None, None


collect.defvjp(_collect_forward, _collect_backward)
