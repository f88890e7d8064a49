"""The decoder shared by all families: embedding, blocks, norm, head; for training, prefill and decoding.

Layers form groups of equal blocks (three dense, then 58 with experts). They are a list of blocks (`layers`, unrolled:
fastest on CPU) or one block per group whose weights have a leading layer axis (`stacks`, scanned: 61 layers compile in
seconds), by the switch `scan_layers`. Initial values do not depend on it; `unstack` and `stack` convert between the
layouts, and a checkpoint of either is read into the other. `split` and `merge` are the border of the module system:
below it parameters are a plain nested dict.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r1jax.core.sharding import constrain, join_rows
from r1jax.models import stacks
from r1jax.models.attention import Context, mask_bias, segment_mask
from r1jax.models.cache import Cache, cache_mask, constrain_layers
from r1jax.models.layers import FLOAT32, Dtypes, Embedding, Head, Keys, RMSNorm
from r1jax.models.ops.blockwise_attention import LONG_ROW, Segments
from r1jax.models.rope import attention_factor, rope_frequencies, rope_tables
from r1jax.models.stacks import stack_layer, unstack_layer

Params = dict[str, Any]
MakeBlock = Callable[[Any], "Block"]  # of `Keys`, which stand in for nnx.Rngs

REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class States(NamedTuple):
    """Result of a forward pass: normalized states [B, T, D], the cache after it (None without one), and router
    statistics stacked over the layers with a router ("load" [L, E], "balance" [L]; {} if there is none).
    """

    hidden: jax.Array
    cache: Cache | None
    router: dict[str, jax.Array]


class Block(nnx.Module):
    """Pre-norm attention and MLP with residuals.

    `attention(x, context, cache, prefix) -> (y, cache)` with `init_cache(rows, columns)`; `mlp(x, valid) -> (y, router
    statistics, {} without a router)`; a routed MLP also accepts preset expert ids.
    """

    def __init__(self, attention: Any, mlp: Any, attention_norm: RMSNorm, mlp_norm: RMSNorm):
        self.attention, self.mlp = attention, mlp
        self.attention_norm, self.mlp_norm = attention_norm, mlp_norm

    def __call__(
        self, x_BTD: jax.Array, context: Context, cache: Any, prefix: Any, experts: jax.Array | None = None
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        attended, cache = self.attention(self.attention_norm(x_BTD), context, cache, prefix)
        x_BTD = x_BTD + attended
        told = {} if experts is None else {"experts_BTA": experts}
        if context.experts is not None:
            told["kernels"] = context.experts
        mixed, router = self.mlp(self.mlp_norm(x_BTD), context.valid, **told)
        return constrain(x_BTD + mixed, ("batch", "sequence", "act_embed")), cache, router


class Transformer(nnx.Module):
    """Decoder-only language model of groups of blocks: (count, `make_block(rngs)`), first layer first.

    `config` needs vocab_size, hidden_size, head_dim (the rotated width), rope_theta, rope_scaling, norm_epsilon,
    tie_embeddings, initializer_std. `extra`: makers of prediction depths (models/mtp.py).
    """

    def __init__(
        self,
        config: Any,
        groups: Sequence[tuple[int, MakeBlock]],
        *,
        rngs: nnx.Rngs,
        dtypes: Dtypes = FLOAT32,
        scan_layers: bool = False,
        remat: str = "none",
        extra: Sequence[Callable[[nnx.Rngs], nnx.Module]] = (),
    ):
        self.config, self.dtypes, self.scan_layers, self.remat = config, dtypes, scan_layers, remat
        self.counts = tuple(count for count, _ in groups)
        shared: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs, std=config.initializer_std)
        self.embed = Embedding(config.vocab_size, config.hidden_size, **shared)
        keys = jnp.split(jax.random.split(rngs.params(), sum(self.counts)), np.cumsum(self.counts)[:-1])
        pairs = [(make, group) for (_, make), group in zip(groups, keys, strict=True)]
        if scan_layers:
            self.stacks = nnx.List([_stacked_block(make, group) for make, group in pairs])
        else:
            self.layers = nnx.List([make(Keys(key)) for make, group in pairs for key in group])
        self.norm = RMSNorm(config.hidden_size, epsilon=config.norm_epsilon, dtypes=dtypes, rngs=rngs)
        self.head = None if config.tie_embeddings else Head(config.hidden_size, config.vocab_size, **shared)
        self.mtp = nnx.List([make(rngs) for make in extra]) if extra else None

    def __call__(
        self,
        tokens_BT: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        prefix_ids: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> jax.Array | tuple[jax.Array, Cache]:
        """float32 logits [B, T, V]; with a cache also the updated cache. Arguments as in `hidden`."""
        states = self.hidden(
            tokens_BT, positions=positions, segment_ids=segment_ids, prefix_ids=prefix_ids, cache=cache
        )
        logits_BTV = self.unembed(states.hidden)
        return logits_BTV if states.cache is None else (logits_BTV, states.cache)

    def hidden(
        self,
        tokens_BT: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        prefix_ids: jax.Array | None = None,
        cache: Cache | None = None,
        prefix: Any = None,
        experts: jax.Array | None = None,
    ) -> States:
        """Final normalized states, cache and router statistics.

        positions [B, T]: rotary positions, default 0, 1, .... segment_ids, prefix_ids [B, T]: packing, see
        `segment_mask`. cache: appended to at its common column; rows attend to their visible columns. prefix: keys and
        values of a common beginning of all rows, from `prefix`; `positions` must continue it. experts [L, B, T, A]:
        expert ids imposed on the L layers with a router; where they are -1, the router selects.
        """
        if experts is not None:
            layers, active = self.routing
            message = "`experts` must hold A choices of each token for each of the L layers that have a router"
            chex.assert_shape(experts, (layers, *tokens_BT.shape, active), custom_message=message)
        context, visible = self.make_context(tokens_BT, positions, segment_ids, prefix_ids, cache)
        x_BTD = constrain(join_rows(self.embed(join_rows(tokens_BT))), ("batch", "sequence", "act_embed"))
        run = self._scan if self.scan_layers else self._unroll
        if cache is None:
            x_BTD, _, router = run(x_BTD, context, None, prefix, experts)
            return States(self.norm(x_BTD), None, router)
        x_BTD, layers, router = run(x_BTD, context, cache.layers, prefix, experts)
        return States(self.norm(x_BTD), Cache(layers, visible, cache.column + tokens_BT.shape[1]), router)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Normalized states [..., D] -> float32 logits [..., V]."""
        hidden = join_rows(hidden)
        return self.embed.attend(hidden) if self.head is None else self.head(hidden)

    def prefix(self, tokens_P: jax.Array) -> Any:
        """Per-layer keys and values of tokens that all rows of later calls begin with; differentiable."""
        cache = self.hidden(tokens_P[None], cache=self.init_cache(1, tokens_P.shape[0])).cache
        assert cache is not None
        return cache.layers

    def init_cache(self, rows: int, columns: int) -> Cache:
        """An empty cache: nothing visible, the next token goes to column 0."""
        blocks = self.stacks if self.scan_layers else self.layers
        layers = [block.attention.init_cache(rows, columns) for block in blocks]
        if self.scan_layers:
            repeat = lambda tree, count: jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), tree)
            layers = [repeat(layer, count) for layer, count in zip(layers, self.counts, strict=True)]
        return Cache(constrain_layers(layers), jnp.zeros((rows, columns), bool), jnp.zeros((), jnp.int32))

    def runner(self, block: nnx.Module) -> tuple[Callable, Params]:
        """`run(params, *args)`, which calls the module with this model's rematerialization, and the module's
        parameters.
        """
        graph, params = split(block)
        return _run_of(graph, self.remat), params

    def make_context(
        self,
        tokens_BT: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        prefixes: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[Context, Any]:
        """Shared inputs of the blocks, and the visible columns afterwards (None without a cache)."""
        chex.assert_rank(tokens_BT, 2)
        chex.assert_equal_shape(
            [array for array in (tokens_BT, positions, segments, prefixes) if array is not None],
            custom_message="tokens, positions, segments and prefixes must be [B, T]",
        )
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        config, length = self.config, tokens_BT.shape[1]
        frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        rope = rope_tables(positions, frequencies, attention_factor(config.rope_scaling))
        valid = jnp.ones(tokens_BT.shape, bool) if segments is None else segments != 0
        if cache is not None:
            mask, visible = cache_mask(cache, length)
            whole = length >= LONG_ROW and cache.length == length  # these tokens fill the whole cache
            return Context(rope, Segments() if whole else mask_bias(mask), valid, cache.column), visible
        if length >= LONG_ROW:
            return Context(rope, Segments(segments, prefixes), valid), None
        segments = jnp.ones(tokens_BT.shape, jnp.int32) if segments is None else segments
        return Context(rope, mask_bias(segment_mask(segments, prefixes)), valid), None

    @property
    def routing(self) -> tuple[int, int]:
        """Number of layers with a router, and number of experts selected per token."""
        blocks = zip(self.stacks, self.counts, strict=True) if self.scan_layers else ((b, 1) for b in self.layers)
        found = [(count, block.mlp.router.active) for block, count in blocks if hasattr(block.mlp, "router")]
        return sum(count for count, _ in found), max((active for _, active in found), default=0)

    @property
    def sends_all(self) -> bool:
        """Whether tokens travel to their experts in as many turns as all need (models/dispatch.py)."""
        blocks = self.stacks if self.scan_layers else self.layers
        return any(hasattr(block.mlp, "router") and block.mlp.dispatch.complete for block in blocks)

    def _unroll(
        self, x: jax.Array, context: Context, caches: Any, prefixes: Any, experts: jax.Array | None
    ) -> tuple[jax.Array, Any, dict]:
        new, routers = [], []
        told = iter(() if experts is None else experts)
        for index, layer in enumerate(self.layers):
            run, params = self.runner(layer)
            cache, prefix = (None if tree is None else tree[index] for tree in (caches, prefixes))
            choices = next(told, None) if hasattr(layer.mlp, "router") else None
            x, cache, router = jax.jit(run)(params, x, context, cache, prefix, choices)  # equal layers are traced once
            new.append(cache)
            routers.append(router)
        return x, None if caches is None else new, join_routers(routers, jnp.stack)

    def _scan(
        self, x: jax.Array, context: Context, caches: Any, prefixes: Any, experts: jax.Array | None
    ) -> tuple[jax.Array, Any, dict]:
        new, routers, told = [], [], 0
        for index, block in enumerate(self.stacks):
            group, prefix = (None if tree is None else tree[index] for tree in (caches, prefixes))
            count, choices = self.counts[index], None
            if experts is not None and hasattr(block.mlp, "router"):
                choices, told = experts[told : told + count], told + count
            x, group, router = self._scan_group(block, count, x, context, group, prefix, choices)
            new.append(group)
            routers.append(router)
        return x, None if caches is None else new, join_routers(routers, jnp.concatenate)

    def _scan_group(
        self,
        block: Any,
        count: int,
        x: jax.Array,
        context: Context,
        caches: Any,
        prefixes: Any,
        experts: jax.Array | None,
    ) -> tuple[jax.Array, Any, dict]:
        """Scans one group of layers. Caches are a carry, updated in place: as scan outputs they would be copied every
        step.
        """
        run, params = self.runner(block)
        kernels, in_place = None, stacks.are_read_in_place()
        if (
            in_place
            and caches is not None
            and x.shape[1] == 1
            and hasattr(block.mlp, "router")
            and block.mlp.dispatch.complete
        ):
            kernels = block.mlp.experts.kernels()  # these are not cut out of their stack
            nothing = jax.tree.map(lambda kernel: jnp.zeros(len(kernel)), params["mlp"]["experts"])
            params = {**params, "mlp": {**params["mlp"], "experts": nothing}}

        def body(carry: tuple, layer: tuple) -> tuple[tuple, dict]:
            x, caches = carry
            index, params, prefix, choices = layer
            if in_place:
                inner = dataclasses.replace(context, experts=stack_layer(kernels, index)) if kernels else context
                x, cache, router = run(params, x, inner, stack_layer(caches, index), prefix, choices)
                return (x, unstack_layer(cache)), router
            cache = jax.tree.map(lambda c: jax.lax.dynamic_index_in_dim(c, index, keepdims=False), caches)
            x, cache, router = run(params, x, context, cache, prefix, choices)
            update = lambda old, new: jax.lax.dynamic_update_index_in_dim(old, new, index, 0)
            return (x, jax.tree.map(update, caches, cache)), router

        (x, caches), router = jax.lax.scan(body, (x, caches), (jnp.arange(count), params, prefixes, experts))
        return x, caches, router


@functools.lru_cache(maxsize=256)
def _run_of(graph: nnx.GraphDef, remat: str) -> Callable:
    """`run(params, *args)`, one function for all blocks of a structure, so that `jax.jit` of it is traced once."""

    def run(params: Params, *args: Any) -> Any:
        return merge(graph, params)(*args)

    policy = REMAT_POLICIES[remat]
    return run if policy is None else jax.checkpoint(run, policy=policy)


def join_routers(routers: Sequence[dict], join: Callable) -> dict[str, jax.Array]:
    """Router statistics of all routed layers as one dict, by `join` (stack single layers, concatenate groups)."""
    routing = [router for router in routers if router]
    return jax.tree.map(lambda *xs: join(xs), *routing) if routing else {}


def _stacked_block(make_block: MakeBlock, keys: jax.Array) -> Block:
    """One block with the weights of all layers of a group, stacked along a new first axis "layers"."""
    graph, _ = split(nnx.eval_shape(lambda: make_block(Keys(keys[0]))))
    block = merge(graph, jax.vmap(lambda key: split(make_block(Keys(key)))[1])(keys))
    for _, variable in nnx.iter_graph(block):
        if isinstance(variable, nnx.Variable):
            variable.set_metadata(axes=("layers", *variable.get_metadata("axes")))
    return block


def split(module: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Structure of a module, and its parameters as a plain nested dict."""
    graph, state = nnx.split(module)
    return graph, nnx.to_pure_dict(state)


def merge(graph: nnx.GraphDef, params: Params) -> Any:
    """The module of a structure and parameters from `split`."""
    return nnx.merge(graph, params)


def logical_axes(module: nnx.Module) -> Params:
    """Logical axes of every parameter as tuples, in the structure of `split(module)[1]`."""
    _, state = nnx.split(module)
    axes = jax.tree.map(lambda v: v.get_metadata("axes"), state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return axes if isinstance(axes, dict) else nnx.to_pure_dict(axes)


def unstack(params: Params, counts: Sequence[int] = (), take: Callable[[Any, int], Any] = operator.getitem) -> Params:
    """Scanned -> canonical layout: the rows of all `stacks` become `layers` {0: ..., 1: ...}. Canonical parameters are
    returned unchanged. counts: layers of each group (default: the rows of the arrays); `take(array, row)` extracts a
    row.
    """
    if "stacks" not in params:
        return params
    stacks = [params["stacks"][group] for group in range(len(params["stacks"]))]
    counts = counts or [jax.tree.leaves(tree)[0].shape[0] for tree in stacks]
    rows = [(tree, i) for tree, count in zip(stacks, counts, strict=True) for i in range(count)]
    layers = {layer: jax.tree.map(lambda x, i=i: take(x, i), tree) for layer, (tree, i) in enumerate(rows)}
    return {"layers": layers, **{key: value for key, value in params.items() if key != "stacks"}}


def stack(params: Params, counts: Sequence[int] = (), join: Callable[[Sequence], Any] = jnp.stack) -> Params:
    """Canonical -> scanned layout with groups of `counts` layers (default: one group). Scanned parameters are returned
    unchanged. `join(arrays)` stacks the arrays of a group.
    """
    if "stacks" in params:
        return params
    layers = params["layers"]
    ends = np.cumsum(counts or [len(layers)])
    groups = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    stacks = {
        group: jax.tree.map(lambda *xs: join(xs), *(layers[i] for i in members)) for group, members in enumerate(groups)
    }
    return {"stacks": stacks, **{key: value for key, value in params.items() if key != "layers"}}
