"""One update: gradients of micro-batches added up, then clip and AdamW.

The loss is injected: `loss_fn(params, batch) -> (loss, sums)`, where the micro-batch losses of one update add up to
the update's loss (denominators are global, made by the caller). So the number of micro-batches is free and nothing
recompiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from r1jax.learner.state import TrainState
from r1jax.models.transformer import Params

LossFn = Callable[[Params, Any], tuple[jax.Array, dict[str, jax.Array]]]


class Learner:
    """The jitted programs of an update for one loss and one optimizer."""

    def __init__(self, loss_fn: LossFn, optimizer: optax.GradientTransformation):
        self.loss_fn, self.optimizer = loss_fn, optimizer
        self.accumulate = jax.jit(self._accumulate, donate_argnums=1)
        self.apply = jax.jit(self._apply, donate_argnums=0)

    def update(
        self, state: TrainState, batches: Iterable[Any]
    ) -> tuple[TrainState, dict[str, Any], list[dict[str, jax.Array]]]:
        """One optimizer step over micro-batches -> (state, {loss, grad_norm}, the sums of each micro-batch).

        `state` is donated. An update without micro-batches leaves the state alone: it has no gradient.
        """
        gradients, losses, sums = None, [], []
        for batch in batches:
            if gradients is None:
                gradients = jax.tree.map(jnp.zeros_like, state.params)
            gradients, loss, sums_here = self.accumulate(state.params, gradients, batch)
            losses.append(loss)
            sums.append(sums_here)
        if gradients is None:
            return state, {"loss": 0.0, "grad_norm": 0.0}, []
        state, norm = self.apply(state, gradients)
        return state, {"loss": jnp.stack(losses).sum(), "grad_norm": norm}, sums

    def _accumulate(self, params: Params, gradients: Params, batch: Any) -> tuple[Params, jax.Array, dict]:
        (loss, sums), new = jax.value_and_grad(self.loss_fn, has_aux=True)(params, batch)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), gradients, new), loss, sums

    def _apply(self, state: TrainState, gradients: Params) -> tuple[TrainState, jax.Array]:
        norm = optax.tree.norm(gradients)
        changes, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        return TrainState(params, opt_state, state.updates + 1), norm
