"""Losses over packed pairs: of preferences (DPO and its kin) and of reward models.

A batch is that of `PairLoader` (data/preferences/): tokens, targets, segments, positions [B, T] int32, weights [B, T]
(1 at targets of completions), and by pairs margins [B, N], shares [B, N] (of the loss of the whole update, summing to
1; 0 where there is no pair), and where needed reference [B, N, u] with u sequences a pair, and kl [], KTO's reference
point. Sequence j of pair k is segment u k + j + 1 of its row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r1jax.learner.balance import LOAD
from r1jax.learner.step import Frozen, LossFn
from r1jax.losses.logprobs import token_logprobs
from r1jax.losses.preference import PreferenceConfig, RewardLossConfig, bradley_terry_loss, preference_loss
from r1jax.models.transformer import Params, Transformer, merge

Batch = dict[str, Any]
Scorer = Callable[[Params, Batch], jax.Array]


def share_pairs(batches: Sequence[Batch]) -> list[Batch]:
    """The batches of one update (or one evaluation) with shares that sum to 1 over all of them."""
    total = sum(float(batch["shares"].sum(dtype=np.float64)) for batch in batches)
    return [{**batch, "shares": (batch["shares"] / max(total, 1.0)).astype(np.float32)} for batch in batches]


def make_sequence_scorer(graph: nnx.GraphDef, sequences: int, *, chunk: int = 0) -> Scorer:
    """Function from a model's parameters and a batch to the summed log-probs of each sequence [B, N, u]."""

    def score(params: Params, batch: Batch) -> jax.Array:
        return _score(graph, params, batch, sequences, chunk)[0]

    return score


def make_preference_loss(graph: nnx.GraphDef, config: PreferenceConfig, *, chunk: int = 0) -> LossFn:
    """The loss of a micro-batch of pairs, of the method config.type.

    Sums: by pairs "shares" [B, N], "logps" and "rewards" [B, N, 2], "losses" and "nll" [B, N]; and expert loads. The
    log-probs of the reference are the batch's or, with config.reference = "base", those of frozen["base"].
    """
    sequences = config.sequences

    def loss_fn(params: Params, frozen: Frozen, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        logps, lengths, router = _score(graph, params, batch, sequences, chunk)
        reference = batch.get("reference")
        if config.needs_reference and config.reference == "base":
            fixed = jax.lax.stop_gradient(_without_adapters(params, frozen["base"]))
            reference = jax.lax.stop_gradient(_score(graph, fixed, batch, sequences, chunk)[0])
        losses, metrics = preference_loss(
            logps[..., :2],
            lengths[..., :2],
            config,
            reference=None if reference is None else reference[..., :2],
            kl=batch.get("kl", 0.0),
        )
        inside = batch["shares"] > 0
        losses = jnp.where(inside, losses, 0.0)
        sums = {"shares": batch["shares"], "losses": losses, "logps": logps[..., :2], **metrics}
        return (batch["shares"] * losses).sum(), jax.lax.stop_gradient({**sums, **_find_load(router)})

    return loss_fn


def make_reward_loss(graph: nnx.GraphDef, config: RewardLossConfig) -> LossFn:
    """The Bradley-Terry loss of a micro-batch of pairs, for a model with a score (models/scores.py).

    Sums: by pairs "shares", "losses" [B, N] and "scores" [B, N, 2]; and expert loads.
    """

    def loss_fn(params: Params, frozen: Frozen, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        scores, router = _rate(merge(graph, params), batch)
        losses = jnp.where(batch["shares"] > 0, bradley_terry_loss(scores, batch["margins"], config), 0.0)
        sums = {"shares": batch["shares"], "losses": losses, "scores": scores}
        return (batch["shares"] * losses).sum(), jax.lax.stop_gradient({**sums, **_find_load(router)})

    return loss_fn


def _score(
    graph: nnx.GraphDef, params: Params, batch: Batch, sequences: int, chunk: int
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Summed log-probs and numbers of targets of each sequence [B, N, u], and router statistics."""
    model = merge(graph, params)
    states = model.hidden(batch["tokens"], positions=batch["positions"], segment_ids=batch["segments"])
    logprobs, _ = token_logprobs(states.hidden, batch["targets"], model.unembed, chunk=chunk)
    inside = batch["weights"] > 0
    add = lambda values: _sum_sequences(values, batch["segments"], batch["shares"].shape[1], sequences)
    return add(jnp.where(inside, logprobs, 0.0)), add(1.0 * inside), states.router


def _rate(model: Transformer, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Scores of both sequences of each pair [B, N, 2], at their last tokens; and router statistics."""
    segments = batch["segments"]
    states = model.hidden(batch["tokens"], positions=batch["positions"], segment_ids=segments)
    following = jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))
    scores = jnp.where((segments > 0) & (segments != following), model.rate(states.hidden), 0.0)
    return _sum_sequences(scores, segments, batch["shares"].shape[1], 2), states.router


def _sum_sequences(values: jax.Array, segments: jax.Array, places: int, sequences: int) -> jax.Array:
    """Sums [B, N, u] of values [B, T] over the segments of each row."""
    count = places * sequences + 1
    sums = jax.vmap(lambda v, s: jax.ops.segment_sum(v, s, count))(values, segments)
    return sums[:, 1:].reshape(len(values), places, sequences)


def _without_adapters(params: Params, base: Params) -> Params:
    """The parameters with adapters that change nothing; `base` gives those that are not adapters."""
    if not isinstance(params, dict):
        return base
    return {
        key: jnp.zeros_like(value) if key in ("a", "b") and key not in base else _without_adapters(value, base[key])
        for key, value in params.items()
    }


def _find_load(router: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {LOAD: router["load"]} if "load" in router else {}


def summarize_preferences(sums: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Metrics of an update, under TRL's names, from the sums of its micro-batches: means over pairs."""
    table = _select(sums, ("losses", "logps", "rewards", "nll"))
    chosen, rejected = table["rewards"].T
    return {
        "loss": float(table["losses"].mean()),
        "rewards/chosen": float(chosen.mean()),
        "rewards/rejected": float(rejected.mean()),
        "rewards/accuracies": float((chosen > rejected).mean()),
        "rewards/margins": float((chosen - rejected).mean()),
        "logps/chosen": float(table["logps"][:, 0].mean()),
        "logps/rejected": float(table["logps"][:, 1].mean()),
        "nll_loss": float(table["nll"].mean()),
    }


def summarize_scores(sums: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Metrics of an update of a reward model, under TRL's names."""
    table = _select(sums, ("losses", "scores"))
    scores, chosen, rejected = table["scores"], *table["scores"].T
    return {
        "loss": float(table["losses"].mean()),
        "accuracy": float((chosen > rejected).mean()),
        "margin": float((chosen - rejected).mean()),
        "min_reward": float(scores.min()),
        "mean_reward": float(scores.mean()),
        "max_reward": float(scores.max()),
    }


def find_scores(sums: Sequence[dict[str, Any]]) -> np.ndarray:
    """Scores of the chosen and the rejected text of every pair [pairs, 2]."""
    return _select(sums, ("scores",))["scores"]


def _select(sums: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Values of the pairs that are there, float64, one row a pair; one row of NaN where there are none."""
    inside = np.concatenate([np.asarray(row["shares"]).ravel() > 0 for row in sums])
    table = {}
    for name in names:
        values = np.concatenate([np.asarray(row[name], np.float64).reshape(row["shares"].size, -1) for row in sums])
        values = values[inside] if inside.any() else np.full_like(values[:1], np.nan)
        table[name] = values if values.shape[1] > 1 else values[:, 0]
    return table
