"""Prediction depths on a toy Llama with one or two of them: what each position sees, and that their loss falls."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from r1jax.losses.prediction import mtp_loss, next_token_loss
from r1jax.models.attention import Attention
from r1jax.models.layers import FLOAT32, GatedMLP, RMSNorm
from r1jax.models.mtp import MTPBlock, predict_ahead
from r1jax.models.transformer import Block, Params, Transformer, merge, split
from tests.models.toy import CONFIG, assert_close, tokens

WIDTH = CONFIG.hidden_size


def build(depths: int = 2, **options: Any) -> tuple[nnx.GraphDef, Params]:
    """A toy Llama with prediction depths behind it."""
    shared: dict[str, Any] = dict(dtypes=FLOAT32, std=CONFIG.initializer_std)

    def make_block(rngs: nnx.Rngs) -> Block:
        attention = Attention(WIDTH, CONFIG.num_heads, CONFIG.num_kv_heads, CONFIG.head_dim, rngs=rngs, **shared)
        mlp = GatedMLP(WIDTH, CONFIG.intermediate_size, rngs=rngs, **shared)
        norms = (RMSNorm(WIDTH, epsilon=1e-5, dtypes=FLOAT32, rngs=rngs) for _ in range(2))
        return Block(attention, mlp, *norms)

    make_depth = lambda rngs: MTPBlock(WIDTH, make_block, epsilon=1e-5, rngs=rngs, **shared)
    extra = [make_depth] * depths
    return split(Transformer(CONFIG, [(2, make_block)], rngs=nnx.Rngs(0), extra=extra, **options))


def run(graph: nnx.GraphDef, params: Params, rows: np.ndarray, **packing: Any) -> tuple[jax.Array, list[jax.Array]]:
    """(logits of the model, of each depth)."""

    @jax.jit
    def apply(params: Params) -> tuple[jax.Array, list[jax.Array]]:
        model = merge(graph, params)
        hidden = model.hidden(rows, **packing).hidden
        states, _ = predict_ahead(model, hidden, rows, **packing)
        return model.unembed(hidden), [model.unembed(state) for state in states]

    return apply(params)


def test_depth_by_its_formula() -> None:
    graph, params = build(1)
    rows = tokens(2, 7)
    model = merge(graph, params)
    depth, hidden = model.mtp[0], model.hidden(rows).hidden
    both = jnp.concatenate([depth.embedding_norm(model.embed(rows[:, 1:])), depth.hidden_norm(hidden[:, :-1])], -1)
    context, _ = model.make_context(rows[:, 1:])
    block, *_ = depth.block(both @ depth.projection.kernel[...], context, None, None)
    found = run(graph, params, rows)[1][0]
    assert_close(found[:, :-1], model.unembed(depth.norm(block)))


def test_no_position_sees_beyond_what_it_was_given() -> None:
    """Changing token 5 changes depth d from position 5 - d on, and nothing before."""
    graph, params = build()
    rows = tokens(1, 10)
    other = rows.copy()
    other[0, 5] = rows[0, 5] % 60 + 1
    (_, before), (_, after) = run(graph, params, rows), run(graph, params, other)
    for depth, (a, b) in enumerate(zip(before, after, strict=True), start=1):
        changed = np.abs(np.asarray(a - b))[0].max(-1) > 1e-6
        assert not changed[: 5 - depth].any() and changed[5 - depth : 10 - depth].all()


@pytest.mark.parametrize("options", [{}, {"scan_layers": True, "remat": "full"}])
def test_packed_pieces_equal_rows_of_their_own(options: dict[str, Any]) -> None:
    graph, params = build(**options)
    first, second = tokens(6, seed=1), tokens(5, seed=2)
    rows = np.concatenate([first, second, np.zeros(3, np.int32)])[None]
    segments = np.repeat([1, 2, 0], [6, 5, 3])[None]
    positions = np.concatenate([np.arange(6), np.arange(5), np.zeros(3, int)])[None]
    _, packed = run(graph, params, rows, segment_ids=segments, positions=positions)
    for piece, start in ((first, 0), (second, 6)):
        for depth, (found, expected) in enumerate(
            zip(packed, run(graph, params, piece[None])[1], strict=True), start=1
        ):
            known = len(piece) - depth
            assert_close(found[0, start : start + known], expected[0, :known])
    assert all(np.isfinite(depth).all() for depth in packed)


def test_a_model_without_depths_predicts_nothing_ahead() -> None:
    graph, params = build(0)
    assert "mtp" not in params or not params["mtp"]
    assert run(graph, params, tokens(1, 4))[1] == []


def test_the_loss_of_the_depths_falls_in_training() -> None:
    """Rows that repeat a short cycle: what comes after the next token can be told from what was seen."""
    graph, params = build()
    rows = np.stack([np.resize(tokens(size, seed=size), 24) for size in (3, 4, 5, 6)])
    optimizer = optax.adam(3e-3)

    def losses(params: Params) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        model = merge(graph, params)
        hidden = model.hidden(rows).hidden
        main, weight = next_token_loss(hidden, rows, model.unembed)
        ahead = mtp_loss(predict_ahead(model, hidden, rows)[0], rows, model.unembed)
        return (main + 0.3 * ahead) / weight, (main / weight, ahead / weight)

    @jax.jit
    def step(params: Params, state: Any) -> tuple[Params, Any, tuple[jax.Array, jax.Array]]:
        (_, found), gradient = jax.value_and_grad(losses, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, found

    state, history = optimizer.init(params), []
    for _ in range(40):
        params, state, found = step(params, state)
        history.append([float(x) for x in found])
    (main, ahead), (main_after, ahead_after) = history[0], history[-1]
    assert main_after < main / 4 and ahead_after < ahead / 2
