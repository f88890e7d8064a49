"""Losses of a student against its teacher, which reads the same rows and gets no gradient.

The teacher's parameters are `frozen["teacher"]`; batches are those of `learner/policy_objective.py` for the student's
own samples, and of `learner/supervised.py` for given texts.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from r1jax.learner.policy_objective import Batch, Scoring, compare_sampler, read_states
from r1jax.learner.step import Frozen, LossFn
from r1jax.losses.divergences import forward_kl, reverse_kl, sampled_reverse_kl
from r1jax.losses.logprobs import map_positions, score_logits
from r1jax.models.transformer import Params, merge


@dataclasses.dataclass(frozen=True)
class DivergenceConfig:
    """The divergence between student and teacher.

    Attributes:
      estimator: estimator of the reverse KL on the student's samples: "full" over the vocabulary, or "sampled" by their
        tokens.
      top_k: number of the teacher's likeliest tokens that the forward KL on given texts tells apart; 0 is all.
      cross_entropy: share of the supervised loss that is added to the forward KL.
    """

    estimator: Literal["full", "sampled"] = "full"
    top_k: int = 0
    cross_entropy: float = 0.0


def make_on_policy_loss(
    graph: nnx.GraphDef, teacher: nnx.GraphDef, config: DivergenceConfig, scoring: Scoring
) -> LossFn:
    """Reverse KL of a micro-batch of the student's samples; sums as in the GRPO loss, and "kl"."""

    def loss_fn(params: Params, frozen: Frozen, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        student, hidden_BRD = read_states(graph, params, batch, scoring)
        other, other_BRD = read_states(teacher, frozen["teacher"], batch, scoring)
        temperature = batch.get("temperature", scoring.temperature)

        def measure(hidden: jax.Array, others: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
            logits = student.unembed(hidden).astype(jnp.float32) / temperature
            theirs = jax.lax.stop_gradient(other.unembed(others).astype(jnp.float32) / temperature)
            logprobs, entropy = score_logits(logits, targets)
            if config.estimator == "full":
                loss = reverse_kl(logits, theirs)
                return loss, loss, logprobs, entropy
            return *sampled_reverse_kl(logprobs, score_logits(theirs, targets)[0]), logprobs, entropy

        arrays = (hidden_BRD, other_BRD, batch["targets"])
        loss, kl, logprobs, entropy = map_positions(measure, arrays, scoring.chunk)
        weights, inside = batch["weights"], batch["weights"] > 0
        sums = {"kl": jnp.where(inside, kl, 0.0).sum(), **compare_sampler(logprobs, entropy, batch)}
        return jnp.where(inside, weights * loss, 0.0).sum(), jax.lax.stop_gradient(sums)

    return loss_fn


def make_logits_loss(graph: nnx.GraphDef, teacher: nnx.GraphDef, config: DivergenceConfig, *, chunk: int = 0) -> LossFn:
    """Forward KL of a micro-batch of packed rows; sums as in the supervised loss, and "kl", its share of the
    update's.
    """

    def loss_fn(params: Params, frozen: Frozen, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        student, other = merge(graph, params), merge(teacher, frozen["teacher"])
        places = {"positions": batch["positions"], "segment_ids": batch["segments"]}
        hidden_BTD, other_BTD = (model.hidden(batch["tokens"], **places).hidden for model in (student, other))

        def measure(hidden: jax.Array, others: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
            logits = student.unembed(hidden).astype(jnp.float32)
            kl = forward_kl(logits, other.unembed(others).astype(jnp.float32), top_k=config.top_k)
            fixed = jax.lax.stop_gradient(logits)
            right = jnp.take_along_axis(fixed, targets[..., None], axis=-1)[..., 0] >= fixed.max(-1)
            return kl, score_logits(logits, targets)[0], right.astype(jnp.float32)

        kl, logprobs, right = map_positions(measure, (hidden_BTD, other_BTD, batch["targets"]), chunk)
        weights, inside = batch["weights"], batch["weights"] > 0
        total = lambda x: jnp.where(inside, weights * x, 0.0).sum()
        sums = {
            "kl": total(kl),
            "cross_entropy": total(-logprobs),
            "right": (right * inside).sum(),
            "tokens": inside.sum(),
        }
        loss = sums["kl"] + config.cross_entropy * sums["cross_entropy"] if config.cross_entropy else sums["kl"]
        return loss, jax.lax.stop_gradient(sums)

    return loss_fn
