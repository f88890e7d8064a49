"""Latent attention: its two forms against each other and against formulas in float64, and all that shares its cache."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r1jax.models.layers import FLOAT32, GatedMLP, RMSNorm
from r1jax.models.mla import Form, LatentAttention, LatentSizes
from r1jax.models.transformer import Block, Params, Transformer, merge, split
from tests.models import naive
from tests.models.toy import assert_close, tokens

SIZES = LatentSizes(query_latent=12, latent=16, plain_dim=8, rotary_dim=4, value_dim=6)
HEADS, WIDTH, SCALE = 3, 24, 0.4
FORMS = pytest.mark.parametrize("form", ["plain", "absorbed"])


@dataclasses.dataclass(frozen=True)
class Config:
    """What the decoder asks of a config."""

    vocab_size: int = 64
    hidden_size: int = WIDTH
    head_dim: int = SIZES.rotary_dim
    rope_theta: float = 100.0
    rope_scaling: None = None
    norm_epsilon: float = 1e-6
    tie_embeddings: bool = True
    initializer_std: float = 0.3


def build(form: Form, sizes: LatentSizes = SIZES, **options: Any) -> tuple[nnx.GraphDef, Params]:
    """A decoder of two layers with latent attention; norms drawn, so that a forgotten one shows."""

    def make_block(rngs: nnx.Rngs) -> Block:
        shared: dict[str, Any] = dict(dtypes=FLOAT32, rngs=rngs, std=0.3)
        norm = lambda: RMSNorm(WIDTH, epsilon=1e-6, dtypes=FLOAT32, rngs=rngs)
        attention = LatentAttention(WIDTH, HEADS, sizes, scale=SCALE, form=form, **shared)
        return Block(attention, GatedMLP(WIDTH, 32, **shared), norm(), norm())

    graph, params = split(Transformer(Config(), [(2, make_block)], rngs=nnx.Rngs(0), **options))
    random = np.random.default_rng(0)
    draw = lambda path, x: x * random.uniform(0.5, 1.5, x.shape).astype(x.dtype) if path[-1].key == "scale" else x
    return graph, jax.tree_util.tree_map_with_path(draw, params)


def attend_plainly(weights: Params, sizes: LatentSizes, x_TD: np.ndarray) -> np.ndarray:
    """One sequence, head by head, in float64, as equations 37-47 of the paper have it."""
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), weights)
    turns, positions = naive.frequencies(sizes.rotary_dim, Config.rope_theta), np.arange(len(x_TD))
    normed = lambda x, name: naive.normalize(x, weights[name]["scale"], 1e-6)

    def turn(x_TH: np.ndarray) -> np.ndarray:
        pairs = (x_TH[:, 0::2] + 1j * x_TH[:, 1::2]) * np.exp(1j * np.outer(positions, turns))
        return np.stack([pairs.real, pairs.imag], axis=-1).reshape(x_TH.shape)

    if sizes.query_latent:
        latent = normed(x_TD @ weights["query_down"]["kernel"], "query_norm")
        queries = np.einsum("tc,cnh->tnh", latent, weights["query_up"]["kernel"])
    else:
        queries = np.einsum("td,dnh->tnh", x_TD, weights["query"]["kernel"])
    down = x_TD @ weights["kv_down"]["kernel"]
    latent, key = normed(down[:, : sizes.latent], "kv_norm"), turn(down[:, sizes.latent :])
    out = np.zeros_like(x_TD)
    for head in range(queries.shape[1]):
        both = latent @ weights["kv_up"]["kernel"][:, head]
        q, p = queries[:, head], sizes.plain_dim
        scores = SCALE * (q[:, :p] @ both[:, :p].T + turn(q[:, p:]) @ key.T)
        powers = np.exp(np.where(np.tril(np.ones_like(scores)) > 0, scores, -np.inf))
        out += powers / powers.sum(-1, keepdims=True) @ both[:, p:] @ weights["out"]["kernel"][head]
    return out


@FORMS
@pytest.mark.parametrize("query_latent", [0, 12])
def test_forms_equal_the_formulas(form: Form, query_latent: int) -> None:
    sizes = dataclasses.replace(SIZES, query_latent=query_latent)
    graph, params = build(form, sizes)
    x = np.random.default_rng(1).normal(size=(2, 9, WIDTH)).astype(np.float32)

    @jax.jit
    def run(params: Params, x: jax.Array) -> jax.Array:
        model = merge(graph, params)
        context, _ = model.make_context(jnp.zeros(x.shape[:2], jnp.int32))
        return model.layers[1].attention(x, context, None, None)[0]

    expected = np.stack([attend_plainly(params["layers"][1]["attention"], sizes, row) for row in x])
    assert_close(run(params, x), expected, 2e-6)


def test_gradients_of_both_forms_agree() -> None:
    gradients = []
    for form in ("plain", "absorbed"):
        graph, params = build(form)  # type: ignore[arg-type]
        loss = lambda params, graph=graph: jax.nn.logsumexp(merge(graph, params)(tokens(2, 9)), axis=-1).mean()
        gradients.append(jax.jit(jax.grad(loss))(params))
    assert_close(*gradients, 5e-5)


@FORMS
@pytest.mark.parametrize("scan_layers", [False, True])
def test_cached_and_prefixed_tokens_give_the_logits_of_a_whole_pass(form: Form, scan_layers: bool) -> None:
    """Six tokens that all rows share, a prefill of five, a piece of two, one alone: each against the whole."""
    graph, params = build(form, scan_layers=scan_layers)
    shared, rows = tokens(6, seed=5), tokens(3, 8)
    whole = jax.jit(lambda params, rows: merge(graph, params)(rows))(
        params, np.concatenate([np.tile(shared, (3, 1)), rows], axis=1)
    )

    @jax.jit
    def after(params: Params, rows: jax.Array, start: int, cache: Any) -> tuple[jax.Array, Any]:
        model = merge(graph, params)
        positions = jnp.broadcast_to(6 + start + jnp.arange(rows.shape[1]), rows.shape)
        states = model.hidden(rows, positions=positions, cache=cache, prefix=model.prefix(jnp.asarray(shared)))
        return model.unembed(states.hidden), states.cache

    assert_close(after(params, rows, 0, None)[0], whole[:, 6:])
    cache, pieces = merge(graph, params).init_cache(3, 8), []
    for start, end in ((0, 5), (5, 7), (7, 8)):
        logits, cache = after(params, rows[:, start:end], start, cache)
        pieces.append(logits)
    assert_close(jnp.concatenate(pieces, axis=1), whole[:, 6:])


def test_cache_holds_latent_and_rotated_key_alone() -> None:
    model = merge(*build("auto"))
    cache = model.init_cache(2, 5)
    assert jax.tree.map(lambda x: x.shape, cache.layers) == [{"latent": (2, 1, 5, 16 + 4)}] * 2


def test_the_form_follows_from_how_many_ask() -> None:
    """At V3's sizes a step of decoding absorbs, a prefill and training do not."""
    sizes = LatentSizes(1536, 512, 128, 64, 128)
    make = lambda form: nnx.eval_shape(
        lambda: LatentAttention(64, 128, sizes, scale=1.0, form=form, dtypes=FLOAT32, rngs=nnx.Rngs(0), std=1.0)
    )
    absorbs = make("auto")._absorbs
    assert absorbs(1, 100) and absorbs(1, 32_768) and absorbs(4, 4096)
    assert not absorbs(4096, 4096) and not absorbs(1024, 32_768)
    assert make("absorbed")._absorbs(9, 9) and not make("plain")._absorbs(1, 99)


@FORMS
def test_packed_and_padded_rows_equal_rows_of_their_own(form: Form) -> None:
    graph, params = build(form)
    first, second = tokens(5, seed=1), tokens(4, seed=2)
    run = jax.jit(lambda params, rows, **packing: merge(graph, params)(rows, **packing))
    row = np.concatenate([first, second, np.zeros(3, np.int32)])[None]
    segments = np.repeat([1, 2, 0], [5, 4, 3])[None]
    positions = np.concatenate([np.arange(5), np.arange(4), np.zeros(3, int)])[None]
    packed = run(params, row, segment_ids=segments, positions=positions)[0]
    assert np.isfinite(packed).all()
    assert_close(packed[:5], run(params, first[None])[0])
    assert_close(packed[5:9], run(params, second[None])[0])
