"""The compiled part of an SFT run, for a model of arrays or of shapes: its state, and the programs that change and
measure it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.core import distributed
from r1jax.core.sharding import abstract_array, batch_parts, sharding
from r1jax.core.structs import Program, hold
from r1jax.learner.objective import Objective
from r1jax.learner.optimizer import make_optimizer, make_schedule
from r1jax.learner.state import TrainState, abstract_state, init_state, state_places
from r1jax.learner.step import Frozen, Learner
from r1jax.learner.supervised import Batch, make_loss
from r1jax.learner.trainable import Trainable
from r1jax.learner.update_guard import UpdateGuard
from r1jax.models.transformer import Params
from r1jax.stages.sft_config import PackedConfig, SFTConfig
from r1jax.text.tokenizer import Tokenizer

# (model, tokenizer) -> the loss of its updates. An abstract model has no tokenizer.
ObjectiveMaker = Callable[[Trainable, Tokenizer | None], Objective]


def make_supervised_objective(settings: SFTConfig) -> ObjectiveMaker:
    """The maker of the supervised loss described by config.loss."""

    def make(trainable: Trainable, tokenizer: Tokenizer | None) -> Objective:
        loss = make_loss(trainable.graph, settings.loss, chunk=settings.train.logits_chunk)
        return Objective(loss, predicts_ahead=settings.loss.mtp_weight > 0)

    return make


def rows_per_batch(settings: PackedConfig) -> int:
    """Rows of a micro-batch on all devices together."""
    return settings.train.micro_batch_size * batch_parts()


def rows_here(settings: PackedConfig) -> np.ndarray:
    """Rows of a step's batch that this process puts on its devices, bool [rows_per_step]."""
    rows, shape = rows_per_batch(settings), (rows_per_batch(settings), settings.data.length)
    mine = np.zeros(rows, bool)
    place = sharding(("batch", None), shape, name="micro-batch")
    indices = place.addressable_devices_indices_map(shape).values() if place is not None else [None]
    for index in indices:
        mine[index[0] if index else slice(None)] = True
    return np.tile(mine, settings.train.rows_per_step // rows)


class SupervisedUpdates:
    """A model in supervised training: its state, its loss's frozen parameters, and the programs. steps: updates of the
    whole run, for the schedule. bias_rate: as in `Learner`.
    """

    def __init__(
        self, settings: PackedConfig, trainable: Trainable, objective: Objective, steps: int, *, bias_rate: float = 0.0
    ):
        self.settings, self.trainable, self.objective = settings, trainable, objective
        self.optimizer = make_optimizer(settings.optimizer, steps)
        self.schedule = make_schedule(settings.optimizer, steps)
        loss = trainable.wrap(objective.loss_fn)
        self.guard = UpdateGuard(settings.guards)
        places = state_places(trainable.params, trainable.axes, self.optimizer)
        self.learner = Learner(loss, self.optimizer, bias_rate=bias_rate, guard=self.guard, places=places)
        self.measure = jax.jit(self._measure)
        self.state: TrainState = init_state(trainable.params, trainable.axes, self.optimizer)
        self.work = trainable.count_work()

    @property
    def frozen(self) -> Frozen:
        """Parameters that the loss reads but does not train, by name: the base under adapters, a teacher."""
        return {**self.trainable.frozen, **self.objective.frozen}

    def abstract_state(self) -> TrainState:
        """Shapes with shardings of the state."""
        return abstract_state(self.state.params, self.trainable.axes, self.optimizer)

    def update(self, batches: Iterable[Batch]) -> tuple[dict[str, Any], list[dict[str, jax.Array]]]:
        """One optimizer step over micro-batches; returns the results of `Learner.update` except the state."""
        self.state, outcome, sums = self.learner.update(self.state, self.frozen, map(self._place, batches))
        return outcome, sums

    def evaluate(self, batches: Iterable[Batch]) -> list[dict[str, jax.Array]]:
        """The sums of the loss over batches, with the current weights."""
        return [self.measure(self.state.params, self.frozen, self._place(batch)) for batch in batches]

    def count_flops(self, tokens: float, targets: float, pairs: float) -> float:
        """Useful FLOPs of an update with these numbers of tokens, targets and query-key pairs."""
        trained = self.work.train(tokens, targets, pairs, ahead=self.objective.predicts_ahead)
        return trained + self.objective.work.forward(tokens, targets, pairs)

    def programs(self) -> list[Program]:
        """Programs accumulate, apply, measure (the held-out loss); for full rows and abstract parameters."""
        rows, length, state = rows_per_batch(self.settings), self.settings.data.length, self.abstract_state()
        counts = rows * length, rows * length, rows * length**2 / 2
        batch = self.abstract_batch()
        measured = self.work.forward(*counts) + self.objective.work.forward(*counts)
        programs = [
            *self.learner.programs(state, self.frozen, batch, self.count_flops(*counts)),
            Program("measure", self.measure, (state.params, self.frozen, batch), measured),
        ]
        held = {"accumulate": state.opt_state, "apply": self.frozen, "measure": state.opt_state}
        return hold(programs, held)

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes with shardings of a micro-batch."""
        shape = rows_per_batch(self.settings), self.settings.data.length
        integers = dict.fromkeys(("tokens", "targets", "segments", "positions"), jnp.int32)
        arrays = {**integers, "weights": jnp.float32}
        make = lambda dtype: abstract_array(shape, dtype, ("batch", None), name="micro-batch")
        batch = {name: make(dtype) for name, dtype in arrays.items()}
        return {**batch, "token_share": abstract_array((), jnp.float32, ())}

    def _measure(self, params: Params, frozen: Frozen, batch: Batch) -> dict[str, jax.Array]:
        return self.learner.loss_fn(params, frozen, batch)[1]

    def _place(self, batch: Batch) -> Batch:
        """A micro-batch on its devices."""
        place = lambda x: sharding(("batch", None, None)[: np.ndim(x)], np.shape(x), name="micro-batch")
        return distributed.put_global(batch, jax.tree.map(place, batch))
