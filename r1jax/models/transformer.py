"""The decoder that all families share: embedding, a stack of blocks, norm, head; for training, prefill and decode.

The stack is a list of blocks (unrolled: fastest on CPU) or one block whose weights carry a leading layer axis
(scanned: 61 layers compile in seconds): the switch `scan_layers`. Initial values do not depend on the switch;
`unstack` and `stack` lead from one layout to the other, and a checkpoint holds that of its run. `split` and `merge`
are the border of the module system: below it parameters are a plain nested dict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from r1jax.core.sharding import constrain
from r1jax.models.attention import Attention, Context, mask_bias, segment_mask
from r1jax.models.cache import Cache, cache_mask
from r1jax.models.layers import FLOAT32, Dtypes, Embedding, GatedMLP, Head, RMSNorm, rope_frequencies, rope_tables

Params = dict[str, Any]

REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Block(nnx.Module):
    """Pre-norm attention and MLP with residuals."""

    def __init__(self, attention: Attention, mlp: GatedMLP, attention_norm: RMSNorm, mlp_norm: RMSNorm):
        self.attention, self.mlp = attention, mlp
        self.attention_norm, self.mlp_norm = attention_norm, mlp_norm

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any, prefix: Any) -> tuple[jax.Array, Any]:
        attended, cache = self.attention(self.attention_norm(x_BTD), context, cache, prefix)
        x_BTD = x_BTD + attended
        x_BTD = x_BTD + self.mlp(self.mlp_norm(x_BTD))
        return constrain(x_BTD, ("batch", "sequence", "act_embed")), cache


class Transformer(nnx.Module):
    """A decoder-only language model over blocks made by `make_block(rngs)`.

    `config` needs vocab_size, hidden_size, num_layers, head_dim, rope_theta, rope_scaling, norm_epsilon,
    tie_embeddings, initializer_std.
    """

    def __init__(
        self,
        config: Any,
        make_block: Callable[[nnx.Rngs], Block],
        *,
        rngs: nnx.Rngs,
        dtypes: Dtypes = FLOAT32,
        scan_layers: bool = False,
        remat: str = "none",
    ):
        self.config, self.dtypes, self.scan_layers, self.remat = config, dtypes, scan_layers, remat
        shared: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs, std=config.initializer_std)
        self.embed = Embedding(config.vocab_size, config.hidden_size, **shared)
        keys = jax.random.split(rngs.params(), config.num_layers)
        if scan_layers:
            self.layers: Any = _stacked_block(make_block, keys)
        else:
            self.layers = nnx.List([make_block(nnx.Rngs(params=key)) for key in keys])
        self.norm = RMSNorm(config.hidden_size, epsilon=config.norm_epsilon, dtypes=dtypes, rngs=rngs)
        self.head = None if config.tie_embeddings else Head(config.hidden_size, config.vocab_size, **shared)

    def __call__(
        self,
        tokens_BT: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        prefix_ids: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> jax.Array | tuple[jax.Array, Cache]:
        """float32 logits [B, T, V]; with a cache also the cache after these tokens. Arguments as in `hidden`."""
        hidden_BTD, cache = self.hidden(
            tokens_BT, positions=positions, segment_ids=segment_ids, prefix_ids=prefix_ids, cache=cache
        )
        logits_BTV = self.unembed(hidden_BTD)
        return logits_BTV if cache is None else (logits_BTV, cache)

    def hidden(
        self,
        tokens_BT: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        prefix_ids: jax.Array | None = None,
        cache: Cache | None = None,
        prefix: Any = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Final normed states [B, T, D] and the cache.

        positions [B, T]: rotary positions, 0.. by default. segment_ids, prefix_ids [B, T]: packing, see `segment_mask`.
        cache: appended to at its common column; rows see their visible columns. prefix: what all rows begin with, as
        `prefix` gives it; `positions` must go on from there.
        """
        B, T = tokens_BT.shape
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(T), (B, T))
        if cache is None:
            segments = jnp.ones((B, T), jnp.int32) if segment_ids is None else segment_ids
            mask, column = segment_mask(segments, prefix_ids), None
        else:
            (mask, visible), column = cache_mask(cache, T), cache.column
        config = self.config
        rope = rope_tables(positions, rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling))
        x_BTD = constrain(self.embed(tokens_BT), ("batch", "sequence", "act_embed"))
        run = self._scan if self.scan_layers else self._unroll
        context = Context(rope, mask_bias(mask), column)
        if cache is None:
            return self.norm(run(x_BTD, context, None, prefix)[0]), None
        x_BTD, layers = run(x_BTD, context, cache.layers, prefix)
        return self.norm(x_BTD), Cache(layers, visible, cache.column + T)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Normed states [..., D] -> float32 logits [..., V]."""
        return self.embed.attend(hidden) if self.head is None else self.head(hidden)

    def prefix(self, tokens_P: jax.Array) -> Any:
        """Per layer the keys and values of tokens that all rows of later calls begin with; differentiable."""
        _, cache = self.hidden(tokens_P[None], cache=self.init_cache(1, tokens_P.shape[0]))
        assert cache is not None
        return cache.layers

    def init_cache(self, rows: int, columns: int) -> Cache:
        """An empty cache: nothing visible, the next token goes to column 0."""
        if self.scan_layers:
            one = self.layers.attention.init_cache(rows, columns)
            layers = jax.tree.map(lambda x: jnp.zeros((self.config.num_layers, *x.shape), x.dtype), one)
        else:
            layers = [layer.attention.init_cache(rows, columns) for layer in self.layers]
        return Cache(layers, jnp.zeros((rows, columns), bool), jnp.zeros((), jnp.int32))

    def _unroll(self, x: jax.Array, context: Context, caches: Any, prefixes: Any) -> tuple[jax.Array, Any]:
        new = []
        for index, layer in enumerate(self.layers):
            graph, params = split(layer)
            cache, prefix = (None if tree is None else tree[index] for tree in (caches, prefixes))
            x, cache = self._run_block(graph)(params, x, context, cache, prefix)
            new.append(cache)
        return x, None if caches is None else new

    def _scan(self, x: jax.Array, context: Context, caches: Any, prefixes: Any) -> tuple[jax.Array, Any]:
        """The caches are a carry, updated in place layer by layer: as scan outputs they would be copied every step."""
        graph, params = split(self.layers)
        block = self._run_block(graph)

        def body(carry: tuple, layer: tuple) -> tuple[tuple, None]:
            x, caches = carry
            index, params, prefix = layer
            cache = jax.tree.map(lambda c: jax.lax.dynamic_index_in_dim(c, index, keepdims=False), caches)
            x, cache = block(params, x, context, cache, prefix)
            update = lambda old, new: jax.lax.dynamic_update_index_in_dim(old, new, index, 0)
            return (x, jax.tree.map(update, caches, cache)), None

        indices = jnp.arange(self.config.num_layers)
        (x, caches), _ = jax.lax.scan(body, (x, caches), (indices, params, prefixes))
        return x, caches

    def _run_block(self, graph: nnx.GraphDef) -> Callable:
        def run(params: Params, x: jax.Array, context: Context, cache: Any, prefix: Any) -> tuple[jax.Array, Any]:
            return merge(graph, params)(x, context, cache, prefix)

        policy = REMAT_POLICIES[self.remat]
        return run if policy is None else jax.checkpoint(run, policy=policy)


def _stacked_block(make_block: Callable[[nnx.Rngs], Block], keys: jax.Array) -> Block:
    """One block whose weights are those of all layers, stacked along a new first axis "layers"."""
    graph, _ = split(nnx.eval_shape(lambda: make_block(nnx.Rngs(params=keys[0]))))
    block = merge(graph, jax.vmap(lambda key: split(make_block(nnx.Rngs(params=key)))[1])(keys))
    for _, variable in nnx.iter_graph(block):
        if isinstance(variable, nnx.Param):
            variable.set_metadata(axes=("layers", *variable.get_metadata("axes")))
    return block


def split(module: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """(structure, parameters as a plain nested dict)."""
    graph, state = nnx.split(module)
    return graph, nnx.to_pure_dict(state)


def merge(graph: nnx.GraphDef, params: Params) -> Any:
    """The module back from `split`'s two halves."""
    return nnx.merge(graph, params)


def logical_axes(module: nnx.Module) -> Params:
    """The logical axes of every parameter, in the shape of `split(module)[1]`, as tuples."""
    _, state = nnx.split(module)
    axes = jax.tree.map(lambda v: v.get_metadata("axes"), state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return axes if isinstance(axes, dict) else nnx.to_pure_dict(axes)


def unstack(params: Params) -> Params:
    """Scanned -> canonical layout: `layers` becomes {0: ..., 1: ...}. Canonical parameters pass through."""
    layers = params["layers"]
    if 0 in layers:
        return params
    count = jax.tree.leaves(layers)[0].shape[0]
    take = lambda i: jax.tree.map(lambda x: x[i], layers)
    return {**params, "layers": {i: take(i) for i in range(count)}}


def stack(params: Params) -> Params:
    """Canonical -> scanned layout. Scanned parameters pass through."""
    layers = params["layers"]
    if 0 not in layers:
        return params
    blocks = [layers[i] for i in range(len(layers))]
    return {**params, "layers": jax.tree.map(lambda *xs: jnp.stack(xs), *blocks)}
