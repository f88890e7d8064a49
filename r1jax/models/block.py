"""The block that all families share: attention and MLP, each with a residual and norms."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from r1jax.core.sharding import constrain
from r1jax.models.attention import LLAMA, Context, Style
from r1jax.models.layers import RMSNorm
from r1jax.models.layouts import Params, merge

REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Block(nnx.Module):
    """Attention and MLP with residuals, each normalized before (`attention_norm`, `mlp_norm`), after
    (`attention_post_norm`, `mlp_post_norm`), or both; None: not.

    `attention(x, context, cache, prefix) -> (y, cache)` with `init_cache(rows, columns)`, or `(y, cache, statistics)`,
    which join those of the router; `mlp(x, valid) -> (y, router statistics, {} without a router)`; a routed MLP also
    accepts preset expert ids. `tail(x, inputs)` ends the block (None: nothing does); inputs: the layer's own, of
    `Transformer.inputs`.
    """

    def __init__(
        self,
        attention: Any,
        mlp: Any,
        attention_norm: RMSNorm | None,
        mlp_norm: RMSNorm | None,
        attention_post_norm: RMSNorm | None = None,
        mlp_post_norm: RMSNorm | None = None,
        tail: Any = None,
    ):
        self.attention, self.mlp = attention, mlp
        self.attention_norm, self.mlp_norm = attention_norm, mlp_norm
        self.attention_post_norm, self.mlp_post_norm, self.tail = attention_post_norm, mlp_post_norm, tail

    def __call__(
        self, x_BTD: jax.Array, context: Context, cache: Any, prefix: Any, own: dict[str, jax.Array] | None = None
    ) -> tuple[jax.Array, Any, dict[str, Any]]:
        """States, cache and statistics. own: arrays of this layer alone: imposed "experts", "inputs"."""
        own = own or {}
        normed = x_BTD if self.attention_norm is None else self.attention_norm(x_BTD)
        attended, cache, *statistics = self.attention(normed, context, cache, prefix)
        x_BTD = x_BTD + (attended if self.attention_post_norm is None else self.attention_post_norm(attended))
        told = {"experts_BTA": own["experts"]} if "experts" in own else {}
        if context.experts is not None:
            told["kernels"] = context.experts
        mixed, router = self.mlp(x_BTD if self.mlp_norm is None else self.mlp_norm(x_BTD), context.valid, **told)
        mixed = mixed if self.mlp_post_norm is None else self.mlp_post_norm(mixed)
        for each in statistics:
            router = {**router, **each}
        x_BTD = x_BTD + mixed
        x_BTD = x_BTD if self.tail is None else self.tail(x_BTD, own.get("inputs"))
        return constrain(x_BTD, ("batch", "sequence", "act_embed")), cache, router


def style_of(block: Any) -> Style:
    """The options in which the attention of a block differs from Llama's."""
    return getattr(block.attention, "style", LLAMA)


@functools.lru_cache(maxsize=256)
def run_of(graph: nnx.GraphDef, remat: str) -> Callable:
    """`run(params, *args)`, one function for all blocks of a structure, so that `jax.jit` of it is traced once."""

    def run(params: Params, *args: Any) -> Any:
        return merge(graph, params)(*args)

    policy = REMAT_POLICIES[remat]
    return run if policy is None else jax.checkpoint(run, policy=policy)
