"""Attention against loops in float64, and its written-out gradient against autodiff of the textbook form."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r1jax.models.attention import Attention, Context, attend, mask_bias, segment_mask
from r1jax.models.layers import FLOAT32
from r1jax.models.rope import rope_frequencies, rope_tables
from r1jax.models.transformer import merge, split
from tests.models import naive
from tests.models.toy import assert_close

SHAPES = [(4, 2), (3, 1), (2, 2)]  # query heads, kv heads


def draw(heads: int, kv_heads: int, T: int = 5, S: int = 7, H: int = 8, B: int = 2) -> tuple[Any, Any, Any, Any]:
    """q, k, v and a mask [B, T, S] of which every query sees its first key at least."""
    random = np.random.default_rng(heads)
    normal = lambda *shape: np.asarray(random.normal(size=shape), np.float32)
    mask = random.random((B, T, S)) < 0.6
    mask[..., 0] = True
    return normal(B, T, heads, H), normal(B, kv_heads, S, H), normal(B, kv_heads, S, H), mask


def textbook(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention with kv heads repeated, for autodiff."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[1], axis=1) for x in (k, v))
    scores = jnp.einsum("btnh,bnsh->bnts", q, k) / math.sqrt(q.shape[-1])
    return jnp.einsum("bnts,bnsh->btnh", jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf)), v)


@pytest.mark.parametrize(("heads", "kv_heads"), SHAPES)
def test_grouped_heads_equal_loops(heads: int, kv_heads: int) -> None:
    q, k, v, mask = draw(heads, kv_heads)
    found = jax.jit(attend)(q, k, v, mask_bias(mask))
    wide = [x.astype(np.float64) for x in (q, k.swapaxes(1, 2), v.swapaxes(1, 2))]
    expected = [naive.attention(wide[0][b], wide[1][b], wide[2][b], mask[b]) for b in range(len(q))]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(("heads", "kv_heads"), SHAPES)
def test_gradient_is_that_of_the_textbook(heads: int, kv_heads: int, dtype: str, tolerance: float) -> None:
    q, k, v, mask = draw(heads, kv_heads)
    probe = np.random.default_rng(9).normal(size=q.shape).astype(np.float32)
    ours = lambda q, k, v: (attend(q, k, v, mask_bias(mask)).astype(jnp.float32) * probe).sum()
    theirs = lambda q, k, v: (textbook(q, k, v, mask) * probe).sum()
    found = jax.jit(jax.grad(ours, (0, 1, 2)))(*(x.astype(dtype) for x in (q, k, v)))
    assert all(x.dtype == dtype for x in found)
    assert_close(found, jax.jit(jax.grad(theirs, (0, 1, 2)))(q, k, v), tolerance)


@pytest.mark.parametrize("prefixed", [False, True])
def test_values_may_be_narrower_than_keys_and_the_scale_given(prefixed: bool) -> None:
    """Against the same with values padded to the keys' width and queries scaled by hand; gradients too."""
    (q, k, _, mask), values = draw(4, 2), draw(4, 2, H=3)[2]
    random = np.random.default_rng(1)
    prefix = {"k": random.normal(size=(1, 2, 3, 8)), "v": random.normal(size=(1, 2, 3, 3))} if prefixed else None
    prefix = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), prefix)
    wide = lambda v: jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, 5)))

    def narrow(q: Any, k: Any, v: Any) -> Any:
        return attend(q, k, v, mask_bias(mask), prefix, scale=0.7)

    def padded(q: Any, k: Any, v: Any) -> Any:
        before = prefix and {"k": prefix["k"], "v": wide(prefix["v"])}
        return attend(q * (0.7 * math.sqrt(8)), k, wide(v), mask_bias(mask), before)[..., :3]

    sums = [lambda *xs, f=f: jnp.sin(f(*xs)).sum() for f in (narrow, padded)]
    found, expected = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(q, k, values) for f in sums)
    assert_close(found, expected, 1e-6)


@pytest.mark.parametrize("decoding", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), SHAPES)
def test_shared_prefix_is_keys_before_those_of_every_row(heads: int, kv_heads: int, decoding: bool) -> None:
    q, k, v, mask = draw(heads, kv_heads, T=1 if decoding else 5)
    random = np.random.default_rng(1)
    prefix = {name: random.normal(size=(1, kv_heads, 3, 8)).astype(np.float32) for name in ("k", "v")}
    whole = [np.concatenate([np.repeat(prefix[n], len(q), 0), x], axis=2) for n, x in (("k", k), ("v", v))]
    mask_whole = jnp.pad(mask, ((0, 0), (0, 0), (3, 0)), constant_values=True)
    found = jax.jit(attend, static_argnames="decoding")(q, k, v, mask_bias(mask), prefix, decoding=decoding)
    np.testing.assert_allclose(found, jax.jit(attend)(q, *whole, mask_bias(mask_whole)), rtol=0, atol=2e-6)


def test_query_that_sees_nothing_gives_numbers_and_finite_gradients() -> None:
    q, k, v, mask = draw(4, 2)
    mask[0, 1] = mask[1] = False
    value, gradients = jax.jit(jax.value_and_grad(lambda q, k, v: attend(q, k, v, mask_bias(mask)).sum(), (0, 1, 2)))(
        q, k, v
    )
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


def test_huge_scores_do_not_overflow() -> None:
    q, k, v, mask = draw(4, 2)
    found = jax.jit(attend)(q * 1e4, k, v, mask_bias(mask))
    np.testing.assert_allclose(found, textbook(q * 1e4, k, v, mask), rtol=0, atol=1e-5)


def test_segment_mask_by_its_definition() -> None:
    segments = np.array([[1, 1, 2, 2, 3, 4, 0, 0], [0, 1, 2, 1, 2, 2, 3, 0]])
    prefixes = np.array([[0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 1, 0, 1, 1, 2, 0]])
    for given in (None, prefixes):
        found = np.asarray(segment_mask(jnp.asarray(segments), None if given is None else jnp.asarray(given)))
        for b, t, s in np.ndindex(found.shape):
            before = given is not None and segments[b, s] == given[b, t]
            own = segments[b, s] == segments[b, t]
            assert found[b, t, s] == (s <= t and segments[b, s] != 0 and (own or before)), (b, t, s)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_biases_and_norms_of_heads_come_before_the_rotation(bias: bool, normed: bool) -> None:
    options = {"qkv_bias": bias, "norm_epsilon": 1e-3 if normed else None}
    module = Attention(12, 4, 2, 8, dtypes=FLOAT32, rngs=nnx.Rngs(0), std=0.5, **options)
    graph, params = split(module)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), params)
    x = random.normal(size=(5, 12)).astype(np.float32)
    rope = rope_tables(jnp.arange(5)[None], rope_frequencies(8, 100.0, None))
    mask = np.tril(np.ones((5, 5), bool))
    context = Context(rope, mask_bias(mask[None]), jnp.ones((1, 5), bool))
    found, _ = jax.jit(lambda params: merge(graph, params)(x[None], context, None, None))(params)

    def project(name: str) -> np.ndarray:
        part = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params[name])
        heads = np.einsum("td,dnh->tnh", x, part["kernel"]) + part.get("bias", 0)
        scale = params.get(f"{name}_norm", {}).get("scale")
        return heads if scale is None else naive.normalize(heads, scale, 1e-3)

    turn = lambda heads: naive.rotate(heads, np.arange(5), naive.frequencies(8, 100.0))
    mixed = naive.attention(turn(project("query")), turn(project("key")), project("value"), mask)
    assert_close(found[0], np.einsum("tnh,nhd->td", mixed, params["out"]["kernel"]))
    assert ("bias" in params["key"], "key_norm" in params) == (bias, normed)


@pytest.mark.parametrize(
    ("place", "message"), [(1, "keys must be"), (2, "values must be"), (3, r"the bias must be \[B, T, S\]")]
)
def test_arrays_of_another_shape_are_refused(place: int, message: str) -> None:
    q, k, v, mask = draw(4, 2)
    arrays = [q, k, v, mask_bias(mask)]
    arrays[place] = arrays[place][:, :, :-1] if place == 3 else arrays[place][:1]
    with pytest.raises(AssertionError, match=message):
        jax.eval_shape(attend, *arrays)
