"""Mixture of experts in place of an MLP: a router selects A of E small MLPs for each token (DeepSeekMoE, 2401.06066).

Two gates: "sigmoid" (DeepSeek-V3, 2412.19437, section 2.1.2), balanced without an auxiliary loss by a correction bias
that affects the selection but not the weights, has no gradient and is updated by learner/balance.py; and "softmax"
(DeepSeek-V2, 2405.04434; Qwen3, 2505.09388). models/dispatch.py moves tokens to their experts.

The router computes in float32, and its correction bias is float32 in any model dtype.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from r1jax.core.errors import UserError
from r1jax.models.dispatch import GROUPED, Dispatch
from r1jax.models.exchange import ClampedKernels, Kernels
from r1jax.models.layers import FLOAT32, Dtypes, GatedMLP, Linear, weight

GateKind = Literal["sigmoid", "softmax"]


@dataclasses.dataclass(frozen=True)
class Gate:
    """Selection and weighting of experts.

    kind: function from router logits to scores. bias: a correction is added for the selection only. groups,
    active_groups: experts form `groups` equal groups, and a token's experts all lie in its best `active_groups`; a
    group is ranked by the sum of its two best scores ("sigmoid") or by its best one ("softmax"). normalize: the
    selected weights are divided by their sum. scale: factor applied to the weights at the end. linear_bias: the linear
    map has a bias. on_input: the weight of a token's one expert multiplies what goes in, not what comes out (Llama 4).
    """

    kind: GateKind = "softmax"
    normalize: bool = True
    scale: float = 1.0
    groups: int = 1
    active_groups: int = 1
    bias: bool = False
    linear_bias: bool = False
    on_input: bool = False


class Routing(NamedTuple):
    """Scores [B, T, E] of all experts, the selected ones [B, T, A] and their weights [B, T, A]; float32. own: the
    router's own selection where another one was imposed.
    """

    scores: jax.Array
    choice: jax.Array
    weights: jax.Array
    own: jax.Array


class Router(nnx.Module):
    """Scores from one linear map, then the gate's selection."""

    def __init__(
        self, width: int, experts: int, active: int, *, gate: Gate, dtypes: Dtypes, rngs: nnx.Rngs, std: float
    ):
        if experts % gate.groups or not 0 < gate.active_groups <= gate.groups:
            raise UserError(
                f"{experts} experts cannot form {gate.groups} equal groups with {gate.active_groups} active ones"
            )
        if not 0 < active <= experts // gate.groups * gate.active_groups:
            raise UserError(
                f"{active} active experts do not fit into {gate.active_groups} of {gate.groups} groups (of {experts})"
            )
        if gate.on_input and active > 1:
            raise UserError(f"weights on the input need one active expert a token, got {active}")
        self.active, self.gate = active, gate
        self.kernel = weight(rngs, (width, experts), ("embed", None), dtypes, std=std)
        if gate.linear_bias:
            self.bias = weight(rngs, (experts,), (None,), dtypes, std=0.0)
        if gate.bias:
            self.correction_bias = weight(rngs, (experts,), (None,), FLOAT32, std=0.0)

    def __call__(self, x_BTD: jax.Array, experts_BTA: jax.Array | None = None) -> Routing:
        """Routes tokens. experts_BTA: selection to impose (-1: the router's own); its weights follow from the
        scores.
        """
        kernel_DE = self.kernel[...].astype(jnp.float32)
        logits_BTE = jnp.matmul(x_BTD.astype(jnp.float32), kernel_DE, precision="highest")
        if self.gate.linear_bias:
            logits_BTE = logits_BTE + self.bias[...].astype(jnp.float32)
        scores = jax.nn.sigmoid(logits_BTE) if self.gate.kind == "sigmoid" else jax.nn.softmax(logits_BTE)
        own = self._choose(jax.lax.stop_gradient(scores))
        choice = own if experts_BTA is None else jnp.where(experts_BTA < 0, own, experts_BTA.astype(own.dtype))
        weights = jnp.take_along_axis(scores, choice, axis=-1)
        if self.gate.normalize:
            weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
        return Routing(scores, choice, weights * self.gate.scale, own)

    def _choose(self, scores_BTE: jax.Array) -> jax.Array:
        gate, ranked = self.gate, scores_BTE
        if gate.bias:
            ranked = ranked + jax.lax.stop_gradient(self.correction_bias[...])
        if gate.groups > 1:
            grouped = ranked.reshape(*ranked.shape[:-1], gate.groups, -1)
            best = jax.lax.top_k(grouped, min(2, grouped.shape[-1]) if gate.kind == "sigmoid" else 1)[0].sum(-1)
            kept = jax.lax.top_k(best, gate.active_groups)[1]
            inside = (kept[..., None] == jnp.arange(gate.groups)).any(-2)
            ranked = jnp.where(inside[..., None], grouped, -jnp.inf).reshape(ranked.shape)
        return jax.lax.top_k(ranked, self.active)[1]

    def count(self, routing: Routing, valid_BT: jax.Array) -> dict[str, jax.Array]:
        """The statistics "load" [E] and "balance" of `MoE`, over valid tokens."""
        load_BE = _count(routing.choice, valid_BT, routing.scores.shape[-1])
        plain = not self.gate.bias and self.gate.groups == 1
        best = routing.choice if plain else jax.lax.top_k(jax.lax.stop_gradient(routing.scores), self.active)[1]
        best_BE = load_BE if plain else _count(best, valid_BT, load_BE.shape[-1])
        shares = routing.scores / routing.scores.sum(-1, keepdims=True)
        shares_BE = jnp.where(valid_BT[..., None], shares, 0).sum(1)
        tokens_B = valid_BT.sum(-1).clip(1)
        balance = (best_BE * shares_BE).sum(-1) / tokens_B * (load_BE.shape[-1] / self.active)
        return {"load": load_BE.sum(0), "balance": balance.sum()}


class Experts(nnx.Module):
    """Weights of E gated MLPs. form: the class of their `kernels`; those of `ClampedKernels` have biases."""

    def __init__(
        self, width: int, hidden: int, experts: int, *, dtypes: Dtypes, rngs: nnx.Rngs, std: float, form: Any = Kernels
    ):
        self.compute, self.form = dtypes.compute, form
        inward, outward = ("experts", "expert_embed", "expert_mlp"), ("experts", "expert_mlp", "expert_embed")
        self.gate = weight(rngs, (experts, width, hidden), inward, dtypes, std=std)
        self.up = weight(rngs, (experts, width, hidden), inward, dtypes, std=std)
        self.down = weight(rngs, (experts, hidden, width), outward, dtypes, std=std)
        if form is ClampedKernels:
            self.gate_bias = weight(rngs, (experts, hidden), inward[::2], dtypes, std=0.0)
            self.up_bias = weight(rngs, (experts, hidden), inward[::2], dtypes, std=0.0)
            self.down_bias = weight(rngs, (experts, width), outward[::2], dtypes, std=0.0)

    def kernels(self) -> Kernels | ClampedKernels:
        """The weights in the compute dtype."""
        return self.form(*(getattr(self, name)[...].astype(self.compute) for name in self.form._fields))


class MoE(nnx.Module):
    """`active_experts` of `num_experts` MLPs of width `expert_size`, plus one of width `shared_hidden` (0: none) for
    every token, which a sigmoid of one linear map weights if `shared_gate`.

    Called with the mask of valid tokens (not padding); returns the output and statistics. kernels: of the experts, in
    place of its own parameters (models/stacks.py).
    "load" [E]: number of tokens that selected each expert.
    "choice" [B, T, A]: the selected experts of each token.
    "overflow": number of choices that did not fit a buffer (0 unless `buffer_factor` bounds it).
    "balance": the loss of equations 17-20 of DeepSeek-V3 without alpha, a row being a sequence, times the row's valid
    tokens: divided by the number of tokens it is their mean, 1 at perfect balance. As in the paper it counts the
    selection by scores alone, without bias and groups.
    With an imposed selection (router replay: a trainer uses the sampler's, 2510.11370) also "replayed", the number of
    imposed choices of valid tokens, and "agreed", how many of them the router would have made itself.
    """

    experts_norm: nnx.Module | None = None  # of the experts' input, which the router does not see

    def __init__(
        self,
        width: int,
        expert_size: int,
        num_experts: int,
        active_experts: int,
        *,
        shared_hidden: int = 0,
        shared_gate: bool = False,
        form: Any = Kernels,
        gate: Gate,
        dispatch: Dispatch = GROUPED,
        dtypes: Dtypes,
        rngs: nnx.Rngs,
        std: float,
    ):
        shared: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs, std=std)
        self.compute, self.dispatch = dtypes.compute, dispatch
        self.router = Router(width, num_experts, active_experts, gate=gate, **shared)
        self.experts = Experts(width, expert_size, num_experts, form=form, **shared)
        self.shared = GatedMLP(width, shared_hidden, **shared) if shared_hidden else None
        self.shared_gate = Linear((width,), (1,), ("embed", None), **shared) if shared_gate else None

    def __call__(
        self,
        x_BTD: jax.Array,
        valid_BT: jax.Array | None = None,
        experts_BTA: jax.Array | None = None,
        kernels: Any = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        valid_BT = jnp.ones(x_BTD.shape[:2], bool) if valid_BT is None else valid_BT
        routing, kernels = self.router(x_BTD, experts_BTA), kernels or self.experts.kernels()
        choice_BTA = jnp.where(valid_BT[..., None], routing.choice, len(kernels.gate))
        rows_BTD = x_BTD if self.experts_norm is None else self.experts_norm(x_BTD)  # type: ignore[operator]
        rows_BTD, weights_BTA = rows_BTD.astype(self.compute), routing.weights
        if self.router.gate.on_input:
            rows_BTD, weights_BTA = rows_BTD * weights_BTA.astype(self.compute), jnp.ones_like(weights_BTA)
        y_BTD, overflow = self.dispatch(rows_BTD, choice_BTA, weights_BTA, kernels)
        if self.shared is not None:
            beside_BTD = self.shared(x_BTD)[0]
            if self.shared_gate is not None:
                beside_BTD = jax.nn.sigmoid(self.shared_gate(x_BTD)) * beside_BTD
            y_BTD = y_BTD + beside_BTD
        router = {**self.router.count(routing, valid_BT), "choice": routing.choice, "overflow": overflow}
        if experts_BTA is not None:
            told_BTA = (experts_BTA >= 0) & valid_BT[..., None]
            agreed_BTA = told_BTA & (routing.choice[..., None] == routing.own[..., None, :]).any(-1)
            router |= {"replayed": told_BTA.sum(dtype=jnp.float32), "agreed": agreed_BTA.sum(dtype=jnp.float32)}
        return y_BTD, router


def _count(choice_BTA: jax.Array, valid_BT: jax.Array, experts: int) -> jax.Array:
    """[B, E]: number of valid tokens of each row that selected each expert, float32."""
    chosen = (choice_BTA[..., None] == jnp.arange(experts)) & valid_BT[..., None, None]
    return chosen.sum((1, 2), dtype=jnp.float32)
