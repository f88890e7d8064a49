"""The whole decoder on a toy: against a naive Llama, and each of its forms (scanned, cached, packed, with a shared
prefix, rematerialised) against the plain one."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r1jax.models.families import llama
from r1jax.models.layers import Dtypes, Keys
from r1jax.models.rope import RopeScaling
from r1jax.models.transformer import REMAT_POLICIES, Block, Params, logical_axes, merge, split, stack, unstack
from tests.models import naive, toy

STACKS = pytest.mark.parametrize("scan_layers", [False, True])
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_embeddings": False, "num_layers": 3},
    "one kv head": {"num_kv_heads": 1, "rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 16)},
    "as many kv heads": {"num_kv_heads": 4, "rope_scaling": RopeScaling("linear", 2.0), "rope_theta": 500.0},
}
compiled = functools.cache(lambda graph: jax.jit(lambda params, *args, **kw: merge(graph, params)(*args, **kw)))


def run(graph: nnx.GraphDef, params: Params, *args: Any, **kwargs: Any) -> Any:
    return compiled(graph)(params, *args, **kwargs)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_a_naive_llama(name: str) -> None:
    config = toy.change(**VARIANTS[name])
    graph, params = toy.build(config)
    tokens = toy.tokens(2, 12)
    logits = run(graph, params, tokens)
    assert logits.dtype == jnp.float32
    toy.assert_close(logits, np.stack([naive.forward(params, config, row) for row in tokens]))


def test_bfloat16_stays_near_float32() -> None:
    graph, params = toy.build()
    tokens = toy.tokens(2, 12)
    low, _ = toy.build(dtypes=Dtypes("bfloat16", "bfloat16"))
    logits = run(low, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), tokens)
    assert logits.dtype == jnp.float32
    toy.assert_close(logits, run(graph, params, tokens), 0.05)


# --- Scanned and unrolled ---


def test_initial_values_and_results_do_not_depend_on_the_switch() -> None:
    config = toy.change(num_layers=3)
    (listed, as_list), (scanned, as_stack) = (toy.build(config, scan_layers=scan) for scan in (False, True))
    fresh = [split(llama.build(config, rngs=nnx.Rngs(3), scan_layers=scan))[1] for scan in (False, True)]
    chex.assert_trees_all_equal(unstack(fresh[1]), fresh[0])
    as_stack = stack(as_list)
    tokens = toy.tokens(2, 9)
    probe = np.random.default_rng(0).normal(size=(2, 9, config.vocab_size)).astype(np.float32)
    loss = lambda graph: jax.jit(jax.value_and_grad(lambda params: (merge(graph, params)(tokens) * probe).mean()))
    (plain, gradient), (other, stacked) = loss(listed)(as_list), loss(scanned)(as_stack)
    toy.assert_close(run(scanned, as_stack, tokens), run(listed, as_list, tokens), 1e-6)
    toy.assert_close((other, unstack(stacked)), (plain, gradient))


def test_layouts_turn_into_each_other() -> None:
    params = toy.build(toy.change(num_layers=3))[1]
    stacked = stack(params)
    assert jax.tree.leaves(stacked["stacks"])[0].shape[0] == 3
    chex.assert_trees_all_equal(unstack(stacked), params)
    assert stack(stacked) is stacked and unstack(params) is params


@STACKS
def test_every_parameter_names_an_axis_per_dimension(scan_layers: bool) -> None:
    config = toy.change(tie_embeddings=False)
    model = nnx.eval_shape(lambda: llama.build(config, rngs=nnx.Rngs(0), scan_layers=scan_layers))
    axes, (_, shapes) = logical_axes(model), split(model)
    assert jax.tree.all(jax.tree.map(lambda leaf, names: len(names) == leaf.ndim and all(names), shapes, axes))
    layer = axes["stacks"][0] if scan_layers else axes["layers"][0]
    first = ("layers",) if scan_layers else ()
    assert layer["attention"]["query"]["kernel"] == (*first, "embed", "heads", "head_dim")
    assert layer["mlp"]["down"]["kernel"] == (*first, "mlp", "embed")
    assert axes["embed"]["embedding"] == ("vocab", "embed") and axes["head"]["kernel"] == ("embed", "vocab")


@STACKS
def test_recomputing_in_the_backward_pass_changes_no_gradient(scan_layers: bool) -> None:
    _, params = toy.build(scan_layers=scan_layers)
    tokens, gradients = toy.tokens(2, 9), {}
    for policy in REMAT_POLICIES:
        graph, _ = split(llama.build(toy.CONFIG, rngs=nnx.Rngs(0), scan_layers=scan_layers, remat=policy))
        loss = lambda params, graph=graph: jax.nn.logsumexp(merge(graph, params)(tokens), axis=-1).mean()
        gradients[policy] = jax.jit(jax.grad(loss))(params)
    for policy in ("full", "dots"):
        toy.assert_close(gradients[policy], gradients["none"], 1e-6)


# --- With a cache ---


@STACKS
def test_cached_tokens_give_the_logits_of_a_whole_pass(scan_layers: bool) -> None:
    """Prefill of 5, a piece of 3, then one at a time."""
    graph, params = toy.build(scan_layers=scan_layers)
    tokens = toy.tokens(3, 12)
    whole, cache, pieces = run(graph, params, tokens), merge(graph, params).init_cache(3, 12), []
    start = 0
    for count in (5, 3, 1, 1, 1, 1):
        piece = slice(start, start := start + count)
        positions = np.broadcast_to(np.arange(12)[piece], (3, count))
        logits, cache = run(graph, params, tokens[:, piece], positions=positions, cache=cache)
        pieces.append(logits)
    assert int(cache.column) == 12 and cache.visible.all()
    toy.assert_close(jnp.concatenate(pieces, axis=1), whole)


@STACKS
def test_rows_of_several_lengths_share_a_column(scan_layers: bool) -> None:
    """Prompts padded on the right: what stands behind a prompt is hidden, positions go on from its own end."""
    graph, params = toy.build(scan_layers=scan_layers)
    lengths, new, width = np.array([4, 7, 1]), 5, 7
    tokens = toy.tokens(3, width + new)
    _, cache = run(graph, params, tokens[:, :width], cache=merge(graph, params).init_cache(3, width + new))
    cache.visible = jnp.arange(width + new) < lengths[:, None]
    outcome = []
    for step in range(new):
        fed, positions = tokens[:, width + step, None], (lengths + step)[:, None]
        logits, cache = run(graph, params, fed, positions=positions, cache=cache)
        outcome.append(logits[:, 0])
    rows = [np.concatenate([row[:length], row[width:]]) for row, length in zip(tokens, lengths, strict=True)]
    padded = np.stack([np.pad(row, (0, width + new - len(row))) for row in rows])
    whole = run(graph, params, padded)
    expected = jnp.stack([whole[b, length : length + new] for b, length in enumerate(lengths)])
    toy.assert_close(jnp.stack(outcome, axis=1), expected)


# --- Packed rows and shared prefixes ---

PROMPT, FIRST, SECOND, OTHER = ((toy.tokens(size, seed=size)) for size in (4, 3, 5, 2))
ROW = np.concatenate([PROMPT, FIRST, SECOND, OTHER, np.zeros(4, np.int32)])[None]
SEGMENTS = np.repeat([1, 2, 3, 4, 0], [4, 3, 5, 2, 4])[None]
PREFIXES = np.repeat([0, 1, 1, 0, 0], [4, 3, 5, 2, 4])[None]
POSITIONS = np.concatenate([np.arange(4), 4 + np.arange(3), 4 + np.arange(5), np.arange(2), np.zeros(4, int)])[None]
PACKED = {"positions": POSITIONS, "segment_ids": SEGMENTS, "prefix_ids": PREFIXES}
ALONE = [np.concatenate([PROMPT, FIRST])[None], np.concatenate([PROMPT, SECOND])[None], OTHER[None]]


@STACKS
def test_packed_pieces_equal_passes_of_their_own(scan_layers: bool) -> None:
    graph, params = toy.build(scan_layers=scan_layers)
    packed = run(graph, params, ROW, **PACKED)[0]
    first, second, other = (run(graph, params, row)[0] for row in ALONE)
    toy.assert_close(packed[:7], first)
    toy.assert_close(packed[7:12], second[4:])
    toy.assert_close(packed[12:14], other)
    assert np.isfinite(packed).all()


def test_gradient_of_packed_pieces_is_the_sum_of_their_own() -> None:
    graph, params = toy.build()
    probe = np.random.default_rng(0).normal(size=(8, toy.CONFIG.vocab_size)).astype(np.float32)

    def packed(params: Params) -> jax.Array:
        logits = merge(graph, params)(ROW, **PACKED)[0]
        return (logits[4:12] * probe).sum()

    def alone(params: Params) -> jax.Array:
        first, second = (merge(graph, params)(row)[0] for row in ALONE[:2])
        return (jnp.concatenate([first[4:], second[4:]]) * probe).sum()

    toy.assert_close(jax.jit(jax.grad(packed))(params), jax.jit(jax.grad(alone))(params))


@pytest.mark.parametrize("remat", ["none", "full"])
def test_padding_gives_finite_numbers_and_no_gradient(remat: str) -> None:
    """A row of nothing but padding beside a real one: same logits, same gradient as without it."""
    graph, params = toy.build(remat=remat)
    empty = {name: np.concatenate([value, np.zeros_like(value)]) for name, value in PACKED.items()}

    def loss(params: Params, rows: np.ndarray, packing: dict[str, np.ndarray]) -> tuple[jax.Array, jax.Array]:
        logits = merge(graph, params)(rows, **packing)
        weights = (packing["segment_ids"] > 0)[..., None]
        return (jnp.sin(logits) * weights).sum(), logits

    run = jax.jit(jax.grad(loss, has_aux=True))
    gradient, logits = run(params, np.concatenate([ROW, np.zeros_like(ROW)]), empty)
    expected, _ = run(params, ROW, PACKED)
    assert np.isfinite(logits).all()
    toy.assert_close(gradient, expected)


@STACKS
def test_shared_prefix_is_as_if_each_row_held_it(scan_layers: bool) -> None:
    """In packed rows, in a prefill, and token by token."""
    graph, params = toy.build(scan_layers=scan_layers)
    shared, rows = toy.tokens(6, seed=5), toy.tokens(3, 8)
    whole = np.concatenate([np.tile(shared, (3, 1)), rows], axis=1)
    expected = run(graph, params, whole)[:, 6:]
    positions = np.broadcast_to(6 + np.arange(8), (3, 8))

    @jax.jit
    def after(params: Params, rows: jax.Array, positions: jax.Array, cache: Any = None) -> tuple[jax.Array, Any]:
        model = merge(graph, params)
        hidden, cache, _ = model.hidden(
            rows, positions=positions, cache=cache, prefix=model.prefix(jnp.asarray(shared))
        )
        return model.unembed(hidden), cache

    toy.assert_close(after(params, rows, positions)[0], expected)
    logits, cache = after(params, rows[:, :5], positions[:, :5], merge(graph, params).init_cache(3, 8))
    pieces = [logits]
    for t in range(5, 8):
        logits, cache = after(params, rows[:, t, None], positions[:, t, None], cache)
        pieces.append(logits)
    toy.assert_close(jnp.concatenate(pieces, axis=1), expected)


def test_gradient_goes_through_a_shared_prefix() -> None:
    graph, params = toy.build()
    shared, rows = toy.tokens(6, seed=5), toy.tokens(3, 8)
    whole = np.concatenate([np.tile(shared, (3, 1)), rows], axis=1)
    positions = np.broadcast_to(6 + np.arange(8), (3, 8))

    def once(params: Params) -> jax.Array:
        model = merge(graph, params)
        hidden, *_ = model.hidden(rows, positions=positions, prefix=model.prefix(jnp.asarray(shared)))
        return jnp.sin(model.unembed(hidden)).sum()

    each = lambda params: jnp.sin(merge(graph, params)(whole)[:, 6:]).sum()
    toy.assert_close(jax.jit(jax.grad(once))(params), jax.jit(jax.grad(each))(params))


@pytest.mark.parametrize("name", ["positions", "segment_ids", "prefix_ids"])
def test_one_value_a_token_or_an_error(name: str) -> None:
    model = nnx.eval_shape(lambda: llama.build(toy.CONFIG, rngs=nnx.Rngs(0)))
    tokens = jax.ShapeDtypeStruct((2, 6), "int32")
    with pytest.raises(AssertionError, match=r"tokens, positions, segments and prefixes must be \[B, T\]"):
        jax.eval_shape(lambda tokens: model(tokens, **{name: tokens[:1]}), tokens)


def test_keys_are_those_of_nnx() -> None:
    key = jax.random.key(3)
    ours, theirs = Keys(key), nnx.Rngs(params=key)
    for _ in range(3):
        assert (jax.random.key_data(ours.params()) == jax.random.key_data(theirs.params())).all()


def test_equal_layers_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[int] = []
    call = Block.__call__
    monkeypatch.setattr(Block, "__call__", lambda self, *args: traced.append(1) or call(self, *args))
    graph, params = toy.build(toy.change(num_layers=5))
    jax.jit(lambda params: merge(graph, params)(toy.tokens(1, 6))).lower(params)
    assert len(traced) == 1
