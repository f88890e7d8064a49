"""Layers of the Gemma 4 family (gemma4.py) that no other has: embeddings of every layer's own, the end of a layer, and
experts beside an MLP.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from r1jax.core.sharding import join_rows, part_rows
from r1jax.models.dispatch import Dispatch
from r1jax.models.exchange import GeluKernels
from r1jax.models.experts import MoE, Router, Routing
from r1jax.models.layers import Dtypes, GatedMLP, Linear, RMSNorm, weight
from r1jax.models.ops.rms_norm import normalize
from r1jax.models.ops.silu_gate import gate_gelu


class LayerInputs(nnx.Module):
    """Each layer's own embedding of a token: the mean of a row of its table and of a map of the token's embedding,
    normalized, times sqrt(2).
    """

    def __init__(self, config: Any, *, dtypes: Dtypes, rngs: nnx.Rngs, std: float):
        self.layers, self.size, self.compute = config.num_layers, config.input_size, dtypes.compute
        shape = (config.vocab_size, self.layers * self.size)
        self.table = weight(rngs, shape, ("vocab", "embed"), dtypes, std=std)
        axes = ("embed", None, None)
        self.projection = Linear(
            (config.hidden_size,), (self.layers, self.size), axes, dtypes=dtypes, rngs=rngs, std=std
        )
        self.norm = RMSNorm(self.size, epsilon=config.norm_epsilon, dtypes=dtypes, rngs=rngs)

    def __call__(self, tokens_BT: jax.Array, x_BTD: jax.Array) -> jax.Array:
        """[L, B, T, P]."""
        rows = jnp.take(self.table[...], tokens_BT, axis=0).astype(self.compute) * self.size**0.5
        mapped = self.norm(self.projection(x_BTD) * x_BTD.shape[-1] ** -0.5)
        return ((mapped + rows.reshape(mapped.shape)) * 2**-0.5).transpose(2, 0, 1, 3)


class Tail(nnx.Module):
    """End of a layer: a gated map of its own embedding of the token is added, and all is multiplied by a number, which
    is not trained.
    """

    gate: Linear | None = None

    def __init__(self, config: Any, *, dtypes: Dtypes, rngs: nnx.Rngs, std: float):
        shared: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs, std=std)
        self.factor = weight(rngs, (1,), (None,), dtypes, std=None)
        if config.input_size:
            self.gate = Linear((config.hidden_size,), (config.input_size,), ("embed", None), **shared)
            self.out = Linear((config.input_size,), (config.hidden_size,), (None, "embed"), **shared)
            self.norm = RMSNorm(config.hidden_size, epsilon=config.norm_epsilon, dtypes=dtypes, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, inputs_BTP: jax.Array | None) -> jax.Array:
        if self.gate is not None and inputs_BTP is not None:
            added = self.out(gate_gelu(self.gate(join_rows(x_BTD)), join_rows(inputs_BTP)))
            x_BTD = x_BTD + self.norm(part_rows(added))
        return x_BTD * jax.lax.stop_gradient(self.factor[...]).astype(x_BTD.dtype)


class ScaledRouter(Router):
    """A router that normalizes the states, and has a factor for each expert's weight."""

    def __init__(self, width: int, experts: int, active: int, *, epsilon: float, **options: Any):
        super().__init__(width, experts, active, **options)
        self.epsilon = epsilon
        self.scale = weight(options["rngs"], (width,), ("norm",), options["dtypes"], std=None)
        self.expert_scale = weight(options["rngs"], (experts,), (None,), options["dtypes"], std=None)

    def __call__(self, x_BTD: jax.Array, experts_BTA: jax.Array | None = None) -> Routing:
        scale_D = self.scale[...].astype(jnp.float32) * x_BTD.shape[-1] ** -0.5
        routing = super().__call__(normalize(x_BTD.astype(jnp.float32), scale_D, self.epsilon), experts_BTA)
        factors_BTA = self.expert_scale[...].astype(jnp.float32)[routing.choice]
        return routing._replace(weights=routing.weights * factors_BTA)


class ExpertsBeside(MoE):
    """Experts beside an MLP: each has norms before and after, and the router reads the states themselves."""

    def __init__(self, config: Any, beside: GatedMLP, *, dispatch: Dispatch, **shared: Any):
        sizes = (config.hidden_size, config.expert_size, config.num_experts, config.active_experts)
        super().__init__(*sizes, form=GeluKernels, gate=config.gate, dispatch=dispatch, **shared)
        self.router = ScaledRouter(
            config.hidden_size, *sizes[2:], epsilon=config.norm_epsilon, gate=config.gate, **shared
        )
        kinds = {"epsilon": config.norm_epsilon, "dtypes": shared["dtypes"], "rngs": shared["rngs"]}
        norm = lambda: RMSNorm(config.hidden_size, **kinds)
        self.beside, self.beside_norm, self.beside_post_norm = beside, norm(), norm()
        self.experts_norm, self.experts_post_norm = norm(), norm()

    def __call__(self, x_BTD: jax.Array, *options: Any, **told: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        mixed_BTD, router = super().__call__(x_BTD, *options, **told)
        beside_BTD = self.beside(self.beside_norm(x_BTD))[0]
        return self.beside_post_norm(beside_BTD) + self.experts_post_norm(mixed_BTD), router
