"""One update: gradients of micro-batches accumulated, then clipping and AdamW.

The loss is injected: `loss_fn(params, frozen, batch) -> (loss, sums)`, where the micro-batch losses of one update sum
to the update's loss (denominators are global, computed by the caller). The number of micro-batches is therefore free
and changes no compiled program. Gradients are summed in float32 in any parameter dtype.

`frozen` contains by name the parameters that the loss reads and does not train: "base" (the model under adapters),
"teacher", "reference". They are arguments of the compiled program (as closures they would become constants in it), get
no gradient and are not donated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from r1jax.core.sharding import current_layout, in_layout, replicated, settle
from r1jax.core.structs import Program
from r1jax.core.watchdog import beat
from r1jax.learner.balance import LOAD, shift_biases
from r1jax.learner.state import TrainState
from r1jax.learner.update_guard import UpdateGuard
from r1jax.models.transformer import Params

Frozen = dict[str, Params]
LossFn = Callable[[Params, Frozen, Any], tuple[jax.Array, dict[str, jax.Array]]]


measure_norm = jax.jit(optax.tree.norm)


class Learner:
    """The jitted programs of an update for one loss and one optimizer.

    Every call computes in the mesh and rules that were current at construction, in any thread. bias_rate: change of the
    experts' correction biases per update (learner/balance.py; 0: none). guard: decides by loss and gradient whether an
    update is made (None: each is). places: the shardings of the state, which results keep (None: the compiler chooses
    them, and a program compiles again for arguments that it places otherwise).
    """

    def __init__(
        self,
        loss_fn: LossFn,
        optimizer: optax.GradientTransformation,
        *,
        bias_rate: float = 0.0,
        guard: UpdateGuard | None = None,
        places: TrainState | None = None,
    ):
        self.loss_fn, self.optimizer, self.bias_rate, self.guard = loss_fn, optimizer, bias_rate, guard
        self.layout = current_layout()
        everywhere = replicated() if places is not None else None
        params = None if places is None else places.params
        self.accumulate = jax.jit(self._accumulate, donate_argnums=1, out_shardings=(params, everywhere, everywhere))
        self.apply = jax.jit(self._apply, donate_argnums=0, out_shardings=(places, everywhere))
        self.balance = jax.jit(self._balance, donate_argnums=0, out_shardings=places)
        self.zeros = jax.jit(_zeros, out_shardings=params)

    @in_layout
    def update(
        self, state: TrainState, frozen: Frozen, batches: Iterable[Any]
    ) -> tuple[TrainState, dict[str, Any], list[dict[str, jax.Array]]]:
        """One optimizer step over micro-batches -> (state, {loss, grad_norm}, the sums of each micro-batch).

        Expert loads (`LOAD`) are removed from the sums; their total is in the result. `state` is donated. An update
        without micro-batches has no gradient and leaves the state unchanged, and so does one that the guard skips.
        """
        gradients, total, load = None, None, None
        losses, sums, seen = [], [], []
        for batch in batches:
            if gradients is None:
                gradients = self.zeros(state.params)
            gradients, loss, sums_here = self.accumulate(state.params, gradients, frozen, batch)
            losses.append(settle(loss))
            total = loss if total is None else total + loss  # of one shape, whatever the number of micro-batches
            if LOAD in sums_here:
                load = sums_here.pop(LOAD) if load is None else load + sums_here.pop(LOAD)
            sums.append(sums_here)
            if self.guard is not None:
                seen.append(batch)
            beat()
        if gradients is None:
            return state, {"loss": 0.0, "grad_norm": 0.0}, []
        if self.guard is not None:
            norm = measure_norm(gradients)
            if not self.guard.admit(float(norm), [float(loss) for loss in losses], seen, int(state.updates) + 1):
                return state, {"loss": total, "grad_norm": norm}, sums
        state, norm = self.apply(state, gradients)
        outcome = {"loss": total, "grad_norm": norm}
        if load is not None:
            outcome[LOAD] = load
            state = self.balance(state, load) if self.bias_rate else state
        return state, outcome, sums

    def programs(self, state: TrainState, frozen: Frozen, batch: Any, useful_flops: float) -> list[Program]:
        """accumulate (the gradient of a micro-batch, added to the sum) and apply (the optimizer's step), for abstract
        arguments. useful_flops: of one micro-batch. Left out: `balance`, which reads and writes no more than biases,
        and `measure_norm`, which only reads the gradient.
        """
        wide = lambda p: jax.ShapeDtypeStruct(p.shape, _wide_dtype(p), sharding=p.sharding)
        gradients = jax.tree.map(wide, state.params)
        return [
            Program("accumulate", self.accumulate, (state.params, gradients, frozen, batch), useful_flops),
            Program("apply", self.apply, (state, gradients), 0.0),
        ]

    def _accumulate(
        self, params: Params, gradients: Params, frozen: Frozen, batch: Any
    ) -> tuple[Params, jax.Array, dict]:
        (loss, sums), new = jax.value_and_grad(self.loss_fn, has_aux=True)(params, frozen, batch)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), gradients, new), loss, sums

    def _apply(self, state: TrainState, gradients: Params) -> tuple[TrainState, jax.Array]:
        norm = optax.tree.norm(gradients)
        changes, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        return TrainState(params, opt_state, state.updates + 1), norm

    def _balance(self, state: TrainState, load_LE: jax.Array) -> TrainState:
        return dataclasses.replace(state, params=shift_biases(state.params, load_LE, self.bias_rate))


def _zeros(params: Params) -> Params:
    """Accumulators of the gradient: float32 or wider."""
    return jax.tree.map(lambda param: jnp.zeros_like(param, dtype=_wide_dtype(param)), params)


def _wide_dtype(param: Any) -> Any:
    return jnp.promote_types(param.dtype, jnp.float32)
