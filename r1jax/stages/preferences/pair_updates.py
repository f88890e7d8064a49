"""The compiled part of a run on pairs: the programs of supervised training with batches of pairs, and the log-probs of
whole sequences.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.core import distributed
from r1jax.core.sharding import abstract_array
from r1jax.core.structs import Program, hold
from r1jax.data.preferences.pair_loader import count_places
from r1jax.learner.objective import Objective
from r1jax.learner.preferences import Batch, make_sequence_scorer
from r1jax.learner.trainable import Trainable
from r1jax.models.transformer import Params
from r1jax.stages.sft_config import PackedConfig
from r1jax.stages.sft_updates import SupervisedUpdates, rows_per_batch

SCORED = ("tokens", "targets", "segments", "positions", "weights", "shares")


class PairUpdates(SupervisedUpdates):
    """A model in training on pairs of `sequences` sequences.

    has_reference: whether batches hold the log-probs of a reference. finds_point: whether the loss reads KTO's
    reference point, which is measured over the whole update before it.
    """

    def __init__(
        self,
        settings: PackedConfig,
        trainable: Trainable,
        objective: Objective,
        steps: int,
        *,
        sequences: int = 2,
        has_reference: bool = False,
        finds_point: bool = False,
    ):
        self.sequences, self.has_reference, self.finds_point = sequences, has_reference, finds_point
        super().__init__(settings, trainable, objective, steps)
        scorer = make_sequence_scorer(trainable.graph, sequences, chunk=settings.train.logits_chunk)
        self.score = jax.jit(scorer)

    def update(self, batches: Iterable[Batch]) -> tuple[dict[str, Any], list[dict[str, jax.Array]]]:
        """One optimizer step over micro-batches; returns the results of `Learner.update` except the state."""
        return super().update(self._add_point(batches))

    def evaluate(self, batches: Iterable[Batch]) -> list[dict[str, jax.Array]]:
        """The sums of the loss over batches, with the current weights."""
        return super().evaluate(self._add_point(batches))

    def find_references(self, batches: Iterable[Batch], count: int) -> np.ndarray:
        """Log-probs of the sequences of `count` pairs [count, u] under the current weights; batches hold each once."""
        found, batches = np.zeros((count, self.sequences), np.float32), list(batches)
        for batch, values in zip(batches, self._score(batches), strict=True):
            inside = batch["pairs"] >= 0
            found[batch["pairs"][inside]] = values[inside]
        return found

    def _score(self, batches: Iterable[Batch]) -> list[np.ndarray]:
        weights: Params = self.trainable.whole(self.state.params)
        return [
            np.asarray(distributed.fetch(self.score(weights, self._place({name: batch[name] for name in SCORED}))))
            for batch in batches
        ]

    def _add_point(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """The batches with KTO's reference point: the mean log-ratio of completions to other prompts, at least 0."""
        if not self.finds_point:
            return batches
        batches = list(batches)
        gaps = [
            (values - batch["reference"])[..., -1][batch["shares"] > 0]
            for batch, values in zip(batches, self._score(batches), strict=True)
        ]
        point = np.float32(max(0.0, float(np.concatenate(gaps).mean(dtype=np.float64))))
        return [{**batch, "kl": point} for batch in batches]

    def programs(self) -> list[Program]:
        """Programs accumulate, apply, measure, and score where log-probs of a reference are computed."""
        programs = super().programs()
        if not self.has_reference:
            return programs
        rows, length, state = rows_per_batch(self.settings), self.settings.data.length, self.abstract_state()
        batch = self.abstract_batch()
        arguments = self.trainable.whole(state.params), {name: batch[name] for name in SCORED}
        forward = self.work.forward(rows * length, rows * length, rows * length**2 / (2 * self.sequences))
        return [*programs, *hold([Program("score", self.score, arguments, forward)], {"score": state.opt_state})]

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes with shardings of a micro-batch."""
        batch = super().abstract_batch()
        del batch["token_share"]
        shape = rows_per_batch(self.settings), count_places(self.settings.data.length, self.sequences)
        make = lambda shape, dtype: abstract_array(
            shape, dtype, ("batch", None, None)[: len(shape)], name="micro-batch"
        )
        batch |= {"pairs": make(shape, jnp.int32)}
        batch |= {name: make(shape, jnp.float32) for name in ("margins", "shares")}
        if self.has_reference:
            batch["reference"] = make((*shape, self.sequences), jnp.float32)
        if self.finds_point:
            batch["kl"] = abstract_array((), jnp.float32, ())
        return batch
