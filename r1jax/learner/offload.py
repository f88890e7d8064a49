"""Optimizer state that lies in the host's memory between updates: its moments take no device memory while gradients are
computed and while the policy samples, for a copy there and back at every update.

The update itself still needs room for all of it on the devices.
"""

from __future__ import annotations

from typing import Any

import jax
import optax

HOST = "pinned_host"  # the memory's name, as shardings have it


def keep_in_host(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` with the arrays of its state in the host's memory (scalars stay). Its `init` and `update` are for jit."""

    def init(params: Any) -> Any:
        return _move(inner.init(params), jax.memory.Space.Host)

    def update(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        changes, state = inner.update(gradients, _move(state, jax.memory.Space.Device), params)
        return changes, _move(state, jax.memory.Space.Host)

    return optax.GradientTransformation(init, update)


def find_hosted(function: Any, *arguments: Any) -> Any:
    """Which of the arrays that `function` would return lie in the host's memory: a tree of its result with booleans."""
    traced = jax.jit(function).trace(*arguments)
    spaces = [aval.memory_space == jax.memory.Space.Host for aval in traced.jaxpr.out_avals]
    return jax.tree.unflatten(jax.tree.structure(traced.out_info), spaces)


def _move(state: Any, space: Any) -> Any:
    return jax.tree.map(lambda x: jax.device_put(x, space) if x.ndim else x, state)
