"""The decoder shared by all families: embedding, blocks, norm, head; for training, prefill and decoding.

Layers form groups of equal blocks (three dense, then 58 with experts), or of a pattern of blocks that repeats (five
with a window, one without). They are a list of blocks (`layers`, unrolled: fastest on CPU) or one block per group, or a
list of the pattern's blocks, whose weights have a leading layer axis (`stacks`, scanned: 61 layers compile in seconds),
by the switch `scan_layers`. Initial values do not depend on it; `unstack` and `stack` convert between the layouts, and
a checkpoint of either is read into the other. `split` and `merge` are the border of the module system: below it
parameters are a plain nested dict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r1jax.core.errors import UserError
from r1jax.core.sharding import constrain, join_rows
from r1jax.models import stacks
from r1jax.models.attention import Context, mask_bias, segment_mask
from r1jax.models.block import REMAT_POLICIES as REMAT_POLICIES
from r1jax.models.block import Block as Block
from r1jax.models.block import run_of, style_of
from r1jax.models.cache import Cache, cache_mask, constrain_layers
from r1jax.models.layers import FLOAT32, Dtypes, Embedding, Head, Keys, RMSNorm
from r1jax.models.layouts import MakeBlock as MakeBlock
from r1jax.models.layouts import Params as Params
from r1jax.models.layouts import is_recurrent as is_recurrent
from r1jax.models.layouts import logical_axes as logical_axes
from r1jax.models.layouts import merge as merge
from r1jax.models.layouts import split as split
from r1jax.models.layouts import stack as stack
from r1jax.models.layouts import stack_group
from r1jax.models.layouts import unstack as unstack
from r1jax.models.ops.blockwise_attention import LONG_ROW, Segments
from r1jax.models.rope import Rope, make_tables
from r1jax.models.stacks import stack_layer, unstack_layer
from r1jax.models.windows import count_prefix, mask_ring, mask_window

Group = tuple[int, MakeBlock | Sequence[MakeBlock]]  # number of layers, and their maker or those of a pattern


class States(NamedTuple):
    """Result of a forward pass: normalized states [B, T, D], the cache after it (None without one), and router
    statistics stacked over the layers with a router ("load" [L, E], "balance" [L]; {} if there is none), and
    over those with an indexer ("index" [L], its loss summed over tokens, in nats).
    """

    hidden: jax.Array
    cache: Cache | None
    router: dict[str, jax.Array]


class Transformer(nnx.Module):
    """Decoder-only language model of groups of blocks: (count, `make_block(rngs)`), or (count, the makers of a pattern
    of blocks that the layers repeat), first layer first.

    `config` needs vocab_size, hidden_size, head_dim (the rotated width), rope_theta, rope_scaling, norm_epsilon,
    tie_embeddings, initializer_std; it may have `ropes`, further kinds of rotation by name (`Rope`; "": in place of the
    former three), embedding_scale, logit_cap (a soft bound), norm_offset. `extra`: makers of prediction depths
    (models/mtp.py). inputs: maker of a module `(tokens, embedded [B, T, D]) -> [L, B, T, ...]`: an array for each
    layer, which its block gets (`Block.tail`).
    """

    score: Any = None  # a `Score` in place of the head (models/scores.py)

    def __init__(
        self,
        config: Any,
        groups: Sequence[Group],
        *,
        rngs: nnx.Rngs,
        dtypes: Dtypes = FLOAT32,
        scan_layers: bool = False,
        remat: str = "none",
        extra: Sequence[Callable[[nnx.Rngs], nnx.Module]] = (),
        inputs: Callable[[nnx.Rngs], Any] | None = None,
    ):
        self.config, self.dtypes, self.scan_layers, self.remat = config, dtypes, scan_layers, remat
        self.counts = tuple(count for count, _ in groups)
        self.logit_cap = getattr(config, "logit_cap", 0.0)
        shared: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs, std=config.initializer_std)
        scale, offset = getattr(config, "embedding_scale", 1.0), getattr(config, "norm_offset", 0.0)
        self.embed = Embedding(config.vocab_size, config.hidden_size, scale=scale, **shared)
        keys = jnp.split(jax.random.split(rngs.params(), sum(self.counts)), np.cumsum(self.counts)[:-1])
        pairs = [(make, group) for (_, make), group in zip(groups, keys, strict=True)]
        if scan_layers:
            self.stacks = nnx.List([stack_group(make, group) for make, group in pairs])
        else:
            many = [make if isinstance(make, Sequence) else [make] for make, _ in pairs]
            blocks = [
                makers[i % len(makers)](Keys(key))
                for makers, g in zip(many, keys, strict=True)
                for i, key in enumerate(g)
            ]
            self.layers = nnx.List(blocks)
        self.norm = RMSNorm(config.hidden_size, epsilon=config.norm_epsilon, dtypes=dtypes, rngs=rngs, offset=offset)
        self.head = None if config.tie_embeddings else Head(config.hidden_size, config.vocab_size, **shared)
        self.mtp = nnx.List([make(rngs) for make in extra]) if extra else None
        self.inputs = None if inputs is None else inputs(rngs)

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
        context, visible = self.make_context(tokens_BT, positions, segment_ids, prefix_ids, cache, prefix)
        x_BTD = constrain(join_rows(self.embed(join_rows(tokens_BT))), ("batch", "sequence", "act_embed"))
        run, own = self._scan if self.scan_layers else self._unroll, {}
        if experts is not None:
            layers, active = self.routing
            message = "`experts` must hold A choices of each token for each of the L layers that have a router"
            chex.assert_shape(experts, (layers, *tokens_BT.shape, active), custom_message=message)
            ranks = np.cumsum([_routes(block) for block in self.blocks()]) - 1
            own["experts"] = experts[np.maximum(ranks, 0)]  # of all layers; those without a router take none
        if self.inputs is not None:
            own["inputs"] = self.inputs(tokens_BT, x_BTD)
        if cache is None:
            x_BTD, _, router = run(x_BTD, context, None, prefix, own)
            return States(self.norm(x_BTD), None, router)
        x_BTD, layers, router = run(x_BTD, context, cache.layers, prefix, own)
        T, clock = tokens_BT.shape[1], cache.clock
        changed: dict[str, Any] = {"column": cache.column + T, "clock": None if clock is None else clock + T}
        return States(self.norm(x_BTD), dataclasses.replace(cache, layers=layers, visible=visible, **changed), router)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Normalized states [..., D] -> float32 logits [..., V]. Raises UserError for a model with a score."""
        if self.score is not None:
            raise UserError("this is a reward model: it scores texts (a reward of config.rewards) and writes none")
        hidden = join_rows(hidden)
        logits, cap = self.embed.attend(hidden) if self.head is None else self.head(hidden), self.logit_cap
        return cap * jnp.tanh(logits / cap) if cap else logits

    def rate(self, hidden: jax.Array) -> jax.Array:
        """Normalized states [..., D] -> float32 scores [...], for a model with a score (models/scores.py)."""
        if self.score is None:
            raise UserError("this model has no score: a reward model ends in one (config.stage = 'reward_model')")
        return self.score(join_rows(hidden))

    def prefix(self, tokens_P: jax.Array) -> Any:
        """Per-layer keys and values of tokens that all rows of later calls begin with; differentiable."""
        cache = self.hidden(tokens_P[None], cache=self.init_cache(1, tokens_P.shape[0])).cache
        assert cache is not None
        return cache.layers

    def init_cache(self, rows: int, columns: int, chunk: int = 0) -> Cache:
        """An empty cache: nothing visible, the next token goes to column 0.

        chunk: most tokens of a row that will be written at once, by which layers with windows keep fewer columns than
        the others (0: any number, and all columns).
        """
        told, windows = {"chunk": chunk} if chunk else {}, self._windows
        make = lambda block: block.attention.init_cache(rows, columns, **(told if style_of(block).window else {}))
        layers: list[Any]
        if self.scan_layers:
            repeat = lambda tree, count: jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), tree)
            layers = [
                [repeat(make(member), count // len(block)) for member in block]
                if isinstance(block, nnx.List)
                else repeat(make(block), count)
                for block, count in zip(self.stacks, self.counts, strict=True)
            ]
        else:
            layers = [make(block) for block in self.layers]
        clock = jnp.zeros((), jnp.int32) if windows else None
        visible, column = jnp.zeros((rows, columns), bool), jnp.zeros((), jnp.int32)
        return Cache(constrain_layers(layers), visible, column, clock, chunk if windows else 0)

    def runner(self, block: nnx.Module) -> tuple[Callable, Params]:
        """`run(params, *args)`, which calls the module with this model's rematerialization, and the module's
        parameters.
        """
        graph, params = split(block)
        return run_of(graph, self.remat), params

    def make_context(
        self,
        tokens_BT: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        prefixes: jax.Array | None = None,
        cache: Cache | None = None,
        prefix: Any = None,
    ) -> tuple[Context, Any]:
        """Shared inputs of the blocks, and the visible columns afterwards (None without a cache)."""
        chex.assert_rank(tokens_BT, 2)
        chex.assert_equal_shape(
            [array for array in (tokens_BT, positions, segments, prefixes) if array is not None],
            custom_message="tokens, positions, segments and prefixes must be [B, T]",
        )
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        length, ropes = tokens_BT.shape[1], {name: make_tables(positions, rope) for name, rope in self.ropes.items()}
        valid, start = jnp.ones(tokens_BT.shape, bool) if segments is None else segments != 0, count_prefix(prefix)
        shared: dict[str, Any] = dict(positions=positions, segments=segments, prefixes=prefixes)
        if cache is not None:
            mask, visible = cache_mask(cache, length)
            whole = length >= LONG_ROW and cache.length == length  # these tokens fill the whole cache
            bias = Segments() if whole else mask_bias(mask)
            windows = {w: mask_ring(w, cache, positions, start) for w in self._windows}
            told: dict[str, Any] = {"columns": cache.length, "column": cache.column}
            return Context(ropes.pop(""), bias, valid, ropes=ropes, windows=windows, **shared, **told), visible
        known = jnp.ones(tokens_BT.shape, jnp.int32) if segments is None else segments
        seen = None if length >= LONG_ROW else segment_mask(known, prefixes)
        bias = Segments(segments, prefixes) if seen is None else mask_bias(seen)
        windows = {w: mask_window(w, seen, positions, start, bias) for w in self._windows}
        return Context(ropes.pop(""), bias, valid, ropes=ropes, windows=windows, **shared), None

    @property
    def is_recurrent(self) -> bool:
        """Whether a layer's state changes with every token, padding too unless it is named (`segment_ids`)."""
        return any(getattr(block.attention, "is_recurrent", False) for block in self.blocks())

    def mark_valid(self, valid_BT: jax.Array) -> dict[str, jax.Array]:
        """Arguments of `hidden` by which padding does not change a state; none for a model without states."""
        return {"segment_ids": valid_BT.astype(jnp.int32)} if self.is_recurrent else {}

    @property
    def ropes(self) -> dict[str, Rope]:
        """Kinds of rotation by name."""
        config = self.config
        own = getattr(config, "ropes", {})
        return own if "" in own else {"": Rope(config.head_dim, config.rope_theta, config.rope_scaling), **own}

    @property
    def _windows(self) -> list[int]:
        """The windows of layers that do not see all keys."""
        return sorted({style_of(block).window for block in self.blocks()} - {0})

    def blocks(self) -> Iterator[Any]:
        """The block of each layer; scanned layers share that of their stack."""
        if not self.scan_layers:
            yield from self.layers
            return
        for block, count in zip(self.stacks, self.counts, strict=True):
            members = _members(block)
            yield from members * (count // len(members))

    @property
    def routing(self) -> tuple[int, int]:
        """Number of layers with a router, and number of experts selected per token."""
        found = [block.mlp.router.active for block in self.blocks() if _routes(block)]
        return len(found), max(found, default=0)

    @property
    def sends_all(self) -> bool:
        """Whether tokens travel to their experts in as many turns as all need (models/dispatch.py)."""
        return any(_routes(block) and block.mlp.dispatch.complete for block in self.blocks())

    def _unroll(
        self, x: jax.Array, context: Context, caches: Any, prefixes: Any, own: dict[str, jax.Array]
    ) -> tuple[jax.Array, Any, dict]:
        new, routers = [], []
        for index, layer in enumerate(self.layers):
            run, params = self.runner(layer)
            cache, prefix = (None if tree is None else tree[index] for tree in (caches, prefixes))
            told = _take_own(own, layer, index)
            x, cache, router = jax.jit(run)(params, x, context, cache, prefix, told)  # equal layers are traced once
            context = context.keep(router.pop("kept", {}))
            new.append(cache)
            routers.append(router)
        return x, None if caches is None else new, join_routers(routers, jnp.stack)

    def _scan(
        self, x: jax.Array, context: Context, caches: Any, prefixes: Any, own: dict[str, jax.Array]
    ) -> tuple[jax.Array, Any, dict]:
        new, routers, first = [], [], 0
        for index, block in enumerate(self.stacks):
            group, prefix = (None if tree is None else tree[index] for tree in (caches, prefixes))
            many, members, end = isinstance(block, nnx.List), _members(block), first + self.counts[index]
            told = [_take_own(own, each, slice(first + at, end, len(members))) for at, each in enumerate(members)]
            count, first = self.counts[index] // len(members), end
            listed = lambda tree, many=many: tree if many or tree is None else [tree]
            x, group, found = self._scan_group(members, count, x, context, listed(group), listed(prefix), told)
            for router in found:
                context = context.keep(jax.tree.map(lambda x: x[-1], router.pop("kept", {})))
            new.append(group if many or group is None else group[0])
            routers.append(join_routers(found, _interleave))
        return x, None if caches is None else new, join_routers(routers, jnp.concatenate)

    def _scan_group(
        self,
        blocks: Sequence[Any],
        count: int,
        x: jax.Array,
        context: Context,
        caches: Any,
        prefixes: Any,
        own: list[dict[str, jax.Array]],
    ) -> tuple[jax.Array, Any, list[dict]]:
        """Scans `count` times over the blocks of one group of layers. Caches are a carry, updated in place: as scan
        outputs they would be copied every step.
        """
        runs, params = zip(*map(self.runner, blocks), strict=True)
        in_place, kernels = stacks.are_read_in_place(), {}
        for at, block in enumerate(blocks) if in_place and caches is not None and x.shape[1] == 1 else ():
            if _routes(block) and block.mlp.dispatch.complete:
                kernels[at] = block.mlp.experts.kernels()  # these are not cut out of their stack
                nothing = jax.tree.map(lambda kernel: jnp.zeros(len(kernel)), params[at]["mlp"]["experts"])
                rest = {**params[at], "mlp": {**params[at]["mlp"], "experts": nothing}}
                params = (*params[:at], rest, *params[at + 1 :])

        def body(carry: tuple, layer: tuple) -> tuple[tuple, list[dict]]:
            x, caches = carry
            index, params, prefixes, told = layer
            routers, new = [], []
            for at, run in enumerate(runs):
                cache, prefix = (None if tree is None else tree[at] for tree in (caches, prefixes))
                if in_place:
                    parts = {"experts": stack_layer(kernels[at], index)} if at in kernels else {}
                    inner = dataclasses.replace(context, **parts) if parts else context
                    x, found, router = run(params[at], x, inner, stack_layer(cache, index), prefix, told[at])
                    new.append(unstack_layer(found))
                else:
                    part = jax.tree.map(lambda c: jax.lax.dynamic_index_in_dim(c, index, keepdims=False), cache)
                    x, part, router = run(params[at], x, context, part, prefix, told[at])
                    update = lambda old, new: jax.lax.dynamic_update_index_in_dim(old, new, index, 0)
                    new.append(jax.tree.map(update, cache, part))
                routers.append(router)
            return (x, None if caches is None else new), routers

        (x, caches), routers = jax.lax.scan(body, (x, caches), (jnp.arange(count), params, prefixes, own))
        return x, caches, routers


def _members(block: Any) -> list[Any]:
    """The blocks of a group: one, or those of its pattern."""
    return list(block) if isinstance(block, nnx.List) else [block]


def _routes(block: Any) -> bool:
    return hasattr(block.mlp, "router")


def _take_own(own: dict[str, jax.Array], block: Any, layers: int | slice) -> dict[str, jax.Array]:
    """Those of the arrays [L, ...] that a block takes, at its layers."""
    return {name: array[layers] for name, array in own.items() if name != "experts" or _routes(block)}


def join_routers(routers: Sequence[dict], join: Callable) -> dict[str, jax.Array]:
    """Statistics of all layers that have them as one dict, by `join` (stack single layers, concatenate groups)."""
    names = dict.fromkeys(name for router in routers for name in router)
    return {name: join([router[name] for router in routers if name in router]) for name in names}


def _interleave(arrays: Sequence[jax.Array]) -> jax.Array:
    """Arrays [repeats, ...] of the blocks of a pattern as one, in the order of the layers."""
    if len(arrays) == 1:
        return arrays[0]
    return jnp.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])
