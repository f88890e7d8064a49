"""Float32 master copies, in the optimizer state, of parameters narrower than float32 (model.param_dtype=bfloat16).

Otherwise every update smaller than half a unit in a parameter's last place would be lost. Moments belong to the copies,
so they are float32 too. The copies cost 4 bytes per parameter; float32 parameters have none.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Float32State(NamedTuple):
    """The float32 copy of every narrower parameter (none for float32 parameters), and the inner state."""

    copies: Any
    inner: Any


def keep_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on float32 copies of narrower parameters; its updates move each parameter to its copy, rounded."""

    def init(params: Any) -> Float32State:
        narrow = lambda p: jnp.asarray(p, jnp.float32) if _is_narrow(p) else optax.MaskedNode()
        copies = jax.tree.map(narrow, params)
        return Float32State(copies, inner.init(_fill(copies, params)))

    def update(gradients: Any, state: Float32State, params: Any) -> tuple[Any, Float32State]:
        changes, inner_state = inner.update(gradients, state.inner, _fill(state.copies, params))
        move = lambda copy, change: copy if _is_masked(copy) else copy + change
        copies = jax.tree.map(move, state.copies, changes, is_leaf=_is_masked)
        # The difference of two bfloat16 numbers is exact in float32: added to the old number it gives the new one.
        step = lambda p, copy, change: change if _is_masked(copy) else copy.astype(p.dtype) - p.astype(jnp.float32)
        return jax.tree.map(step, params, copies, changes), Float32State(copies, inner_state)

    return optax.GradientTransformation(init, update)


def _fill(copies: Any, params: Any) -> Any:
    return jax.tree.map(lambda copy, p: p if _is_masked(copy) else copy, copies, params, is_leaf=_is_masked)


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def _is_narrow(param: Any) -> bool:
    return jnp.issubdtype(param.dtype, jnp.floating) and jnp.finfo(param.dtype).bits < 32
