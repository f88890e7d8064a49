"""Optimizer state in host memory between updates: moments take no device memory during gradients and sampling, at the
cost of a copy to the device and back at every update.

The update itself still needs room for all of it on the devices.
"""

from __future__ import annotations

from typing import Any

import jax
import optax

HOST = "pinned_host"  # memory kind, as in shardings


def keep_in_host(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` with the arrays of its state in host memory (scalars stay). Its `init` and `update` must run
    under jit.
    """

    def init(params: Any) -> Any:
        return _move(inner.init(params), jax.memory.Space.Host)

    def update(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        changes, state = inner.update(gradients, _move(state, jax.memory.Space.Device), params)
        return changes, _move(state, jax.memory.Space.Host)

    return optax.GradientTransformation(init, update)


def find_hosted(function: Any, *arguments: Any) -> Any:
    """Which arrays in the result of `function` are in host memory: a tree of booleans."""
    traced = jax.jit(function).trace(*arguments)
    spaces = [aval.memory_space == jax.memory.Space.Host for aval in traced.jaxpr.out_avals]
    return jax.tree.unflatten(jax.tree.structure(traced.out_info), spaces)


def _move(state: Any, space: Any) -> Any:
    return jax.tree.map(lambda x: jax.device_put(x, space) if x.ndim else x, state)
