"""Programs of the policy: the GRPO loss over packed rows, and log-probs of the same rows for old and reference
policies.

A batch is a dict of arrays: tokens, positions, segments [B, T]; index, targets, sequences, weights, advantages,
sampler_logprobs [B, R]; and where needed prefixes [B, T], old_logprobs, reference_logprobs [B, R] (see
data/packing.py), selected [B, R] (tokens of highest entropy); temperature [] if it differs from that of the scoring;
entropy_coefficient [] where it moves towards a target; experts [B, R, L, A] to impose the sampler's
expert selections, -1 where there is no target.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r1jax.learner.balance import LOAD
from r1jax.learner.step import Frozen, LossFn
from r1jax.losses.logprobs import gather_positions, token_logprobs
from r1jax.losses.policy import LOG_RATIO_LIMIT, PolicyLossConfig, policy_loss
from r1jax.models.transformer import Params, merge

Batch = dict[str, jax.Array]

MEANS = ("clip_ratio/", "correction/", "off_policy/", "vespo/")  # metrics that are means over tokens

# Arrays of a batch that log-probs depend on; the others belong to the loss.
SCORED = ("tokens", "positions", "segments", "prefixes", "index", "targets", "temperature", "experts")


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Settings of log-probs: the sampler's temperature, positions whose logits exist at once (0: all), and the common
    prefix ids of all prompts, which rows leave out.
    """

    temperature: float = 1.0
    chunk: int = 0
    prefix: tuple[int, ...] = ()


def read_states(graph: nnx.GraphDef, params: Params, batch: Batch, scoring: Scoring) -> tuple[Any, jax.Array]:
    """The model, and its states [B, R, D] at the positions that predict the targets of packed rows."""
    model, hidden_BRD, _ = _read(graph, params, batch, scoring)
    return model, hidden_BRD


def make_scorer(graph: nnx.GraphDef, scoring: Scoring) -> Callable[[Params, Batch], jax.Array]:
    """Function from a policy's parameters and the `SCORED` arrays of a batch to log-probs of its targets [B, R]."""

    def score(params: Params, batch: Batch) -> jax.Array:
        return score_rows(graph, params, batch, scoring)[0]

    return score


def make_entropies(graph: nnx.GraphDef, scoring: Scoring) -> Callable[[Params, Batch], jax.Array]:
    """Function like that of `make_scorer`, to the entropy (nats) of the distribution of each target [B, R]."""

    def measure(params: Params, batch: Batch) -> jax.Array:
        return score_rows(graph, params, batch, scoring)[1]

    return measure


def score_rows(graph: nnx.GraphDef, params: Params, batch: Batch, scoring: Scoring) -> tuple[jax.Array, jax.Array]:
    """Log-probs and entropy [B, R] of the targets of packed rows; meaningless at padding targets."""
    logprobs, entropy, _ = _score(graph, params, batch, scoring)
    return logprobs, entropy


def _read(
    graph: nnx.GraphDef, params: Params, batch: Batch, scoring: Scoring
) -> tuple[Any, jax.Array, dict[str, jax.Array]]:
    """Result of `read_states`, and router statistics."""
    _check_shapes(batch)
    model = merge(graph, params)
    prefix = model.prefix(jnp.asarray(scoring.prefix, jnp.int32)) if scoring.prefix else None
    states = model.hidden(
        batch["tokens"],
        positions=batch["positions"],
        segment_ids=batch["segments"],
        prefix_ids=batch.get("prefixes"),
        prefix=prefix,
        experts=_lay_out_experts(batch) if "experts" in batch else None,
    )
    return model, gather_positions(states.hidden, batch["index"]), states.router


def _score(
    graph: nnx.GraphDef, params: Params, batch: Batch, scoring: Scoring
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Result of `score_rows`, and router statistics."""
    model, hidden_BRD, router = _read(graph, params, batch, scoring)
    logprobs, entropy = token_logprobs(
        hidden_BRD,
        batch["targets"],
        model.unembed,
        temperature=batch.get("temperature", scoring.temperature),
        chunk=scoring.chunk,
    )
    return logprobs, entropy, router


def _check_shapes(batch: Batch) -> None:
    """The contract of a batch, for the arrays that it has. Raises AssertionError, also while being traced."""
    given = lambda *names: [batch[name] for name in names if name in batch]
    chex.assert_rank([batch["tokens"], batch["index"]], 2)
    chex.assert_equal_shape(
        given("tokens", "positions", "segments", "prefixes"),
        custom_message="tokens, positions, segments and prefixes of a batch must be [B, T]",
    )
    logprobs = ("sampler_logprobs", "old_logprobs", "reference_logprobs")
    values = ("targets", "sequences", "weights", "advantages", *logprobs, "selected")
    chex.assert_equal_shape(
        given("index", *values), custom_message=f"index, {', '.join(values)} of a batch must be [B, R]"
    )
    if "experts" in batch:
        chex.assert_rank(batch["experts"], 4)
        chex.assert_equal_shape_prefix(given("index", "experts"), 2)


def _lay_out_experts(batch: Batch) -> jax.Array:
    """[L, B, T, A]: the sampler's expert selections at the tokens that its ids were sampled from, -1 elsewhere."""
    experts_BRLA, (rows, length) = batch["experts"].astype(jnp.int32), batch["tokens"].shape
    at_BR = jnp.where(experts_BRLA[:, :, 0, 0] < 0, length, batch["index"])
    laid_out = jnp.full((rows, length, *experts_BRLA.shape[2:]), -1)
    laid_out = laid_out.at[jnp.arange(rows)[:, None], at_BR].set(experts_BRLA, mode="drop")
    return laid_out.transpose(2, 0, 1, 3)


def make_loss(
    graph: nnx.GraphDef, config: PolicyLossConfig, scoring: Scoring, *, on_policy: bool, index_weight: float = 1.0
) -> LossFn:
    """The GRPO loss of a micro-batch, and of sparse attention's indexers times `index_weight` (their mean over the fed
    tokens, weighted by the micro-batch's share of the update).

    on_policy: one update per step, so the old log-probs are the stopped new ones. Otherwise they are the batch's
    old_logprobs or, without these, the sampler's.
    """

    def loss_fn(params: Params, frozen: Frozen, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        logprobs, entropy, router = _score(graph, params, batch, scoring)
        old = batch.get("old_logprobs", batch["sampler_logprobs"])
        old = jax.lax.stop_gradient(logprobs) if on_policy else old
        loss, sums = policy_loss(
            logprobs,
            old,
            batch["advantages"],
            batch["weights"],
            config,
            reference_logprobs=batch.get("reference_logprobs"),
            sampler_logprobs=batch["sampler_logprobs"],
            entropy=entropy,
            sequences=batch.get("sequences"),
            selected=batch.get("selected"),
            entropy_coefficient=batch.get("entropy_coefficient"),
        )
        sums = {**sums, **compare_sampler(*jax.lax.stop_gradient((logprobs, entropy)), batch)}
        if "selected" in batch:
            chosen = batch["selected"] * (batch["weights"] > 0)
            sums["selected/tokens"] = chosen.sum()
            sums["selected/entropy"] = jnp.where(chosen > 0, jax.lax.stop_gradient(entropy), 0.0).sum()
        if "index" in router:
            share = batch["weights"].sum() / jnp.maximum((batch["segments"] != 0).sum(), 1)
            sums["index"] = jax.lax.stop_gradient(index := share * router["index"].sum())
            loss += index_weight * index
        if "load" in router:
            sums |= {f"router/{key}": router[key].sum() for key in ("overflow", "replayed", "agreed") if key in router}
            sums[LOAD] = router["load"]
        return loss, sums

    return loss_fn


def compare_sampler(logprobs: jax.Array, entropy: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Difference between the trainer's and the sampler's log-probs: for equal weights, the first sign of a mismatch.

    Tokens of older weights (`ages` above 0) are in the ratios alone.
    """
    inside = batch["weights"] > 0
    fresh = inside & (batch["ages"] == 0) if "ages" in batch else inside
    gap = jnp.where(inside, logprobs - batch["sampler_logprobs"], 0.0)
    ratio = jnp.exp(jnp.clip(gap, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    off = jnp.where(fresh, jnp.abs(gap), 0.0)
    return {
        "tokens": inside.sum(),
        "fresh": fresh.sum(),
        "entropy": jnp.where(inside, entropy, 0.0).sum(),
        "difference/sum": off.sum(),
        "difference/max": off.max(),
        "ratio/sum": (ratio * inside).sum(),
        "ratio/min": jnp.where(inside, ratio, jnp.inf).min(),
        "ratio/max": jnp.where(inside, ratio, -jnp.inf).max(),
    }


def summarize(updates: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Metrics of a step from the sums of each update's micro-batches.

    Sampler and trainer are compared on the first update with tokens, whose weights are the sampler's but for the decay
    of updates without; `kl` exists only with a reference. What no token measured is NaN.
    """
    table = _tabulate([row for parts in updates for row in parts])
    tables = [_tabulate(parts) for parts in updates]
    first = next((rows for rows in tables if rows["tokens"].any()), tables[0])
    tokens, compared, fresh = (
        rows[key].sum() or math.nan for rows, key in ((table, "tokens"), (first, "tokens"), (first, "fresh"))
    )
    metrics = {
        "entropy": table["entropy"].sum() / tokens,
        "sampling/sampling_logp_difference/mean": first["difference/sum"].sum() / fresh,
        "sampling/sampling_logp_difference/max": first["difference/max"].max() if fresh > 0 else math.nan,
        "sampling/importance_sampling_ratio/min": first["ratio/min"].min(),
        "sampling/importance_sampling_ratio/mean": first["ratio/sum"].sum() / compared,
        "sampling/importance_sampling_ratio/max": first["ratio/max"].max(),
    }
    if "router/replayed" in first:
        metrics["router/agreement"] = first["router/agreed"].sum() / max(first["router/replayed"].sum(), 1.0)
    if "router/overflow" in table:
        metrics["router/overflow"] = table["router/overflow"].sum()
    if "index" in table:
        metrics["index_loss"] = table["index"].sum() / len(updates)
    if "selected/tokens" in table:
        metrics["entropy_selected"] = table["selected/entropy"].sum() / max(table["selected/tokens"].sum(), 1.0)
    means = [key for key in table if key == "kl" or key.startswith(MEANS)]
    return metrics | {key: table[key].sum() / tokens for key in means}


def mean_entropy(parts: list[dict[str, Any]]) -> float:
    """Mean entropy of an update's tokens that have a surrogate, from the sums of its micro-batches."""
    table = _tabulate(parts)
    names = ("selected/entropy", "selected/tokens") if "selected/tokens" in table else ("entropy", "tokens")
    total, tokens = (table[name].sum() for name in names)
    return float(total / max(tokens, 1.0))


def _tabulate(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}
