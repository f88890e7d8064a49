"""The supervised loss over packed rows: next-token cross entropy and, for models that have them, multi-token prediction
and the balance of experts within a sequence.

A batch is a dict of arrays: tokens, targets, positions, segments [B, T] int32; weights [B, T] float32, a target's share
of the loss of the whole update, summing to 1 over the update; and token_share, 1 / input tokens of the whole update
(`share_weights`). So neither the micro-batch size nor the mesh changes the gradient. Positions of weight 0 contribute
nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r1jax.learner.balance import LOAD
from r1jax.learner.step import Frozen, LossFn
from r1jax.losses.logprobs import score_targets
from r1jax.losses.prediction import mtp_loss
from r1jax.models.mtp import predict_ahead
from r1jax.models.transformer import Params, merge

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
    """Terms beside the cross entropy, where a model has the parts; the defaults are DeepSeek-V3's (2412.19437).

    Attributes:
      mtp_weight: weight of the loss of multi-token prediction (lambda of equation 25); 0 leaves it out.
      balance_weight: weight of the loss of experts' balance within a sequence (alpha of equation 17).
      bias_rate: change of the experts' correction biases per update (learner/balance.py).
      index_weight: weight of the loss of sparse attention's indexers (DeepSeek-V3.2), by which they alone learn.
    """

    mtp_weight: float = 0.3
    balance_weight: float = 1e-4
    bias_rate: float = 1e-3
    index_weight: float = 1.0


def share_weights(batches: Sequence[Batch]) -> list[Batch]:
    """The batches of one update (or one evaluation) with weights that sum to 1 over all of them, and `token_share`."""
    total = sum(float(batch["weights"].sum(dtype=np.float64)) for batch in batches)
    fed = sum(int(np.count_nonzero(batch["segments"])) for batch in batches)
    share = np.float32(1 / max(fed, 1))
    scale = lambda weights: (weights / max(total, 1e-9)).astype(np.float32)
    return [{**batch, "weights": scale(batch["weights"]), "token_share": share} for batch in batches]


def split_batch(batch: Batch, rows: int) -> list[Batch]:
    """Micro-batches of `rows` rows."""
    starts = range(0, len(batch["tokens"]), rows)
    return [{name: array[start : start + rows] for name, array in batch.items()} for start in starts]


def make_loss(graph: nnx.GraphDef, config: SupervisedConfig, *, chunk: int = 0) -> LossFn:
    """The loss of a micro-batch. chunk: positions of a row whose logits exist at once (0: all).

    Sums: "cross_entropy" (its share of the update's), "right" and "tokens" (correctly predicted targets, targets);
    where the model has them "mtp", "balance" and "index" (shares too), expert loads (learner/balance.py), and the
    number of (token, expert) pairs that did not fit a bounded buffer.
    """

    def loss_fn(params: Params, frozen: Frozen, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        model = merge(graph, params)
        weights, places = batch["weights"], {"positions": batch["positions"], "segment_ids": batch["segments"]}
        states = model.hidden(batch["tokens"], **places)
        logprobs, right = score_targets(states.hidden, batch["targets"], model.unembed, chunk=chunk)
        chex.assert_equal_shape(
            [batch[name] for name in ("tokens", "targets", "positions", "segments", "weights")],
            custom_message="tokens, targets, positions, segments and weights of a batch must be [B, T]",
        )
        inside = weights > 0
        loss = -jnp.where(inside, weights * logprobs, 0.0).sum()
        sums = {"cross_entropy": loss, "right": (right * inside).sum(), "tokens": inside.sum()}
        routers = [states.router]
        if model.mtp is not None and config.mtp_weight:
            depths, router = predict_ahead(model, states.hidden, batch["tokens"], **places)
            aimed = {"weights": weights, "segment_ids": batch["segments"], "first": 1, "chunk": chunk}
            sums["mtp"] = mtp_loss(depths, batch["targets"], model.unembed, **aimed)
            loss += config.mtp_weight * sums["mtp"]
            routers.append(router)
        if indexed := [router["index"] for router in routers if "index" in router]:
            sums["index"] = batch["token_share"] * sum(index.sum() for index in indexed)
            loss += config.index_weight * sums["index"]
        routers = [router for router in routers if "load" in router]
        if routers:
            sums["balance"] = batch["token_share"] * sum(router["balance"].sum() for router in routers)
            sums[LOAD] = jnp.concatenate([router["load"] for router in routers])
            sums["router/overflow"] = sum(router["overflow"].sum() for router in routers)
            loss += config.balance_weight * sums["balance"]
        return loss, jax.lax.stop_gradient(sums)

    return loss_fn


def summarize(sums: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Metrics of an update from the sums of its micro-batches: `loss` is the next-token cross entropy (nats)."""
    total = {key: sum(float(row[key]) for row in sums) for key in sums[0] if key != LOAD}
    names = {
        "cross_entropy": "loss",
        "mtp": "mtp_loss",
        "balance": "balance_loss",
        "index": "index_loss",
        "kl": "kl",
        "router/overflow": "router/overflow",
    }
    metrics = {name: total[key] for key, name in names.items() if key in total}
    return metrics | {"token_accuracy": total["right"] / max(total["tokens"], 1.0)}
