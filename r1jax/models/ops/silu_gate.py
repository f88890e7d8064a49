"""The gates of SwiGLU and GeGLU layers (Shazeer 2020); SwiGLU's backward pass stores only its two inputs."""

from __future__ import annotations

import chex
import jax


@jax.custom_vjp
def gate_silu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up, of one shape."""
    chex.assert_equal_shape([gate, up])
    return jax.nn.silu(gate) * up


def _gate_silu_forward(gate: jax.Array, up: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return gate_silu(gate, up), (gate, up)


def _gate_silu_backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    gate, up = saved
    share = jax.nn.sigmoid(gate)
    return grad * up * share * (1 + gate * (1 - share)), grad * gate * share


gate_silu.defvjp(_gate_silu_forward, _gate_silu_backward)


def gate_gelu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """gelu(gate) * up, in the tanh form."""
    return jax.nn.gelu(gate, approximate=True) * up
