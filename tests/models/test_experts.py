"""Experts: gates against loops in float64, the ways of dispatch against each other, and what routers report."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r1jax.core.errors import UserError
from r1jax.models.attention import Attention
from r1jax.models.dispatch import Dispatch
from r1jax.models.exchange import Kernels
from r1jax.models.experts import Gate, MoE, Router
from r1jax.models.layers import FLOAT32, Dtypes, RMSNorm
from r1jax.models.ops import grouped_matmul as grouped
from r1jax.models.transformer import Block, Transformer, merge, split, stack
from tests.models import toy
from tests.models.toy import assert_close, tokens

D, F, E, A = 16, 12, 8, 3
GATES = {
    "v3": Gate("sigmoid", normalize=True, scale=2.5, groups=4, active_groups=2, bias=True),
    "v3_one_group": Gate("sigmoid", normalize=True, scale=1.5, bias=True),
    "v2": Gate("softmax", normalize=False, scale=4.0, groups=4, active_groups=3),
    "v2_lite": Gate("softmax", normalize=False),
    "qwen3": Gate("softmax", normalize=True),
}
random = np.random.default_rng(0)
X = random.normal(size=(2, 20, D)).astype(np.float32)
BIAS = random.normal(0, 0.3, E).astype(np.float32)


def build(gate: Gate = GATES["v3"], **options: Any) -> tuple[nnx.GraphDef, Any]:
    shared: dict[str, Any] = dict(gate=gate, dtypes=FLOAT32, rngs=nnx.Rngs(1), std=0.3)
    return split(MoE(D, F, E, A, **{**shared, "shared_hidden": 2 * F, **options}))


def with_bias(params: Any, bias: np.ndarray = BIAS) -> Any:
    return {**params, "router": {**params["router"], "correction_bias": jnp.asarray(bias)}}


def gate_naively(x_D: np.ndarray, kernel_DE: np.ndarray, bias_E: np.ndarray, gate: Gate) -> dict[int, float]:
    """expert -> weight of one token, in float64, by loops."""
    logits = x_D @ kernel_DE
    if gate.kind == "sigmoid":
        scores = 1 / (1 + np.exp(-logits))
    else:
        scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    ranked = {e: scores[e] + (bias_E[e] if gate.bias else 0) for e in range(E)}
    size = E // gate.groups
    quality = []
    for g in range(gate.groups):
        best = sorted((ranked[e] for e in range(g * size, (g + 1) * size)), reverse=True)
        quality.append(sum(best[:2]) if gate.kind == "sigmoid" else best[0])
    kept = sorted(range(gate.groups), key=lambda g: -quality[g])[: gate.active_groups]
    chosen = sorted((e for e in range(E) if e // size in kept), key=lambda e: -ranked[e])[:A]
    total = sum(scores[e] for e in chosen) if gate.normalize else 1.0
    return {e: gate.scale * scores[e] / total for e in chosen}


def mix_naively(params: Any, x_D: np.ndarray, gate: Gate) -> np.ndarray:
    """One token through its experts and the shared one."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def mlp(weights: list[np.ndarray]) -> np.ndarray:
        hidden = x_D @ weights[0]
        return (hidden / (1 + np.exp(-hidden)) * (x_D @ weights[1])) @ weights[2]

    names = ("gate", "up", "down")
    chosen = gate_naively(x_D, params["router"]["kernel"], params["router"].get("correction_bias"), gate)
    routed = sum(share * mlp([params["experts"][name][e] for name in names]) for e, share in chosen.items())
    return routed + mlp([params["shared"][name]["kernel"] for name in names])


# --- The gate ---


@pytest.mark.parametrize("name", GATES)
def test_gates_and_experts_follow_the_formulas(name: str) -> None:
    gate = GATES[name]
    graph, params = build(gate)
    if gate.bias:
        params = with_bias(params)
    y, router = jax.jit(lambda params: merge(graph, params)(X))(params)
    assert_close(y, np.stack([[mix_naively(params, x, gate) for x in row] for row in X.astype(np.float64)]), 2e-6)
    choices = [gate_naively(x, np.float64(params["router"]["kernel"]), BIAS, gate) for x in X.reshape(-1, D)]
    assert router["load"].tolist() == [sum(e in chosen for chosen in choices) for e in range(E)]


def test_the_bias_decides_the_choice_and_never_the_weight() -> None:
    """With a bias that outweighs all scores the choice is the bias's; its gradient is nothing."""
    graph, params = build(GATES["v3_one_group"])
    params = with_bias(params, np.where(np.arange(E) < A, 9.0, 0.0).astype(np.float32))

    def run(params: Any) -> tuple[jax.Array, Any]:
        y, router = merge(graph, params)(X)
        return jnp.square(y).sum() + router["balance"], router["load"]

    (_, load), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    assert load.tolist() == [X[..., 0].size] * A + [0] * (E - A)
    assert not gradient["router"]["correction_bias"].any() and gradient["router"]["kernel"].any()


@pytest.mark.parametrize("name", ["v3", "qwen3"])
def test_the_balance_loss_is_that_of_the_paper(name: str) -> None:
    """Equations 17-20: each row a sequence, its padding left out; the best by scores alone are counted."""
    graph, params = build(GATES[name])
    valid = np.ones(X.shape[:2], bool)
    valid[1, 13:] = False
    params = with_bias(params) if name == "v3" else params
    _, router = jax.jit(lambda params: merge(graph, params)(X, valid))(params)
    logits = X.astype(np.float64) @ np.float64(params["router"]["kernel"])
    scores = 1 / (1 + np.exp(-logits)) if name == "v3" else np.exp(logits)
    expected = 0.0
    for row, length in ((0, 20), (1, 13)):
        shares = scores[row, :length] / scores[row, :length].sum(-1, keepdims=True)
        best = np.argsort(-scores[row, :length], axis=-1)[:, :A]
        f = np.array([(best == e).sum() for e in range(E)]) * E / (A * length)
        expected += length * (f * shares.mean(0)).sum()
    assert float(router["balance"]) == pytest.approx(expected, rel=1e-5)
    assert float(router["load"].sum()) == 33 * A


def test_the_router_is_float32_in_a_model_of_low_precision() -> None:
    low = Dtypes("bfloat16", "bfloat16")
    graph, params = build(dtypes=low)
    assert params["router"]["correction_bias"].dtype == jnp.float32 and params["experts"]["up"].dtype == jnp.bfloat16
    y, router = jax.jit(lambda params: merge(graph, params)(X.astype(jnp.bfloat16)))(params)
    assert y.dtype == jnp.bfloat16 and router["load"].dtype == router["balance"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("gate", "active", "message"),
    [
        (Gate("sigmoid", groups=3), 2, "8 experts cannot form 3 equal groups"),
        (Gate("sigmoid", groups=4, active_groups=5), 2, "8 experts cannot form 4 equal groups with 5 active ones"),
        (Gate("sigmoid", groups=4, active_groups=1), 3, r"3 active experts do not fit into 1 of 4 groups \(of 8\)"),
    ],
)
def test_gates_that_cannot_be_are_refused(gate: Gate, active: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Router(D, E, active, gate=gate, dtypes=FLOAT32, rngs=nnx.Rngs(0), std=1.0)


def test_an_unknown_dispatch_is_refused() -> None:
    with pytest.raises(UserError, match="dispatch must be one of dense, grouped, all_to_all, ragged, .*, got 'sparse'"):
        Dispatch("sparse")


# --- Dispatch ---


def draw_choices(kind: str) -> np.ndarray:
    """[2, 20, A] choices: all different a token; E where a token is padding."""
    draw = np.random.default_rng(2)
    choice = np.stack([draw.permutation(E)[:A] for _ in range(X[..., 0].size)]).reshape(*X.shape[:2], A)
    if kind == "one":  # all tokens to the same experts, the others get none
        choice[:] = [5, 2, 7]
    elif kind == "padded":
        choice[0, 9:], choice[1, :4] = E, E
    elif kind == "padding":
        choice[:] = E
    return choice


@functools.cache
def run_dispatch(name: str, kind: str) -> Any:
    """(output, gradients of input, weights and kernels)."""
    draw, choice = np.random.default_rng(3), draw_choices(kind)
    kernels = Kernels(*(draw.normal(0, 0.3, size).astype(np.float32) for size in ((E, D, F), (E, D, F), (E, F, D))))
    weights, along = draw.uniform(size=choice.shape).astype(np.float32), draw.normal(size=X.shape).astype(np.float32)

    @jax.jit
    def run(*args: Any) -> Any:
        def loss(x: jax.Array, weights: jax.Array, kernels: Kernels) -> Any:
            y, overflow = Dispatch(name)(x, choice, weights, kernels)
            return (y * along).sum(), (y, overflow)

        gradient, (y, overflow) = jax.grad(loss, (0, 1, 2), has_aux=True)(*args)
        return y, gradient, overflow

    *found, overflow = jax.device_get(run(X, weights, kernels))
    assert overflow == 0
    return found


@pytest.mark.parametrize("kind", ["spread", "one", "padded", "padding"])
def test_grouped_dispatch_is_the_dense_one(kind: str) -> None:
    """Forward and gradient; nothing is dropped when all tokens want the same experts, and padding gets zeros."""
    found, expected = run_dispatch("grouped", kind), run_dispatch("dense", kind)
    assert_close(found, expected, 1e-5)
    if kind == "padded":
        assert not found[0][0, 9:].any() and not found[1][0][1, :4].any() and found[0][0, :9].any(-1).all()


def multiply_naively(rows: np.ndarray, kernels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    out = np.zeros((len(rows), kernels.shape[2]))
    for start, stop, kernel in zip(np.cumsum(sizes) - sizes, np.cumsum(sizes), kernels, strict=True):
        out[start:stop] = rows[start:stop].astype(np.float64) @ kernel
    return out


KERNELS = {
    "loop": (grouped.multiply_in_blocks, grouped.outer_in_blocks),
    "tpu": (
        functools.partial(grouped.multiply_on_tpu, interpret=True),
        functools.partial(grouped.outer_on_tpu, interpret=True),
    ),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("sizes", [[70, 0, 13, 1], [0, 0, 100, 0], [0, 0, 0, 0], [25, 25, 25, 25]])
def test_products_by_groups(name: str, sizes: list[int]) -> None:
    """Groups that end inside a block, empty ones, rows behind the last; the TPU's kernel as the CPU interprets it."""
    multiply, outer = KERNELS[name]
    draw = np.random.default_rng(5)
    rows, grad = (draw.normal(size=(100, width)).astype(np.float32) for width in (24, 40))
    kernels, count = draw.normal(size=(4, 24, 40)).astype(np.float32), np.array(sizes, np.int32)
    assert_close(jax.jit(functools.partial(multiply, transposed=False))(rows, kernels, count),
                 multiply_naively(rows, kernels, count))  # fmt: skip
    assert_close(jax.jit(functools.partial(multiply, transposed=True))(grad, kernels, count),
                 multiply_naively(grad, kernels.swapaxes(1, 2), count))  # fmt: skip
    ends = np.cumsum(count)
    expected = [rows[end - size : end].T @ grad[end - size : end] for size, end in zip(count, ends, strict=True)]
    assert_close(jax.jit(outer)(rows, grad, count), np.stack(expected))


def test_each_platform_gets_its_kernel() -> None:
    """One program, compiled here for others: the Pallas kernel is in the TPU's and in no other."""
    rows, kernels, sizes = jnp.ones((64, 128)), jnp.ones((4, 128, 128)), jnp.full(4, 16)
    run = jax.jit(jax.grad(lambda rows, kernels: grouped.grouped_matmul(rows, kernels, sizes).sum(), (0, 1)))
    traced = run.trace(rows, kernels)
    texts = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")}
    assert {name: "tpu_custom_call" in text for name, text in texts.items()} == {
        "cpu": False,
        "cuda": False,
        "tpu": True,
    }


def test_grouped_under_vmap_is_a_loop_over_its_calls() -> None:
    graph, params = build(GATES["qwen3"])
    run = lambda x: merge(graph, params)(x[None])[0][0]
    assert_close(jax.jit(jax.vmap(run))(X), jax.jit(lambda x: merge(graph, params)(x)[0])(X))


# --- In a model ---


def build_decoder(scan_layers: bool = False, **options: Any) -> tuple[nnx.GraphDef, Any]:
    """A toy Llama of two layers with experts."""
    width = toy.CONFIG.hidden_size

    def make_block(rngs: nnx.Rngs) -> Block:
        shared: dict[str, Any] = dict(dtypes=FLOAT32, rngs=rngs, std=0.2)
        norm = lambda: RMSNorm(width, epsilon=1e-5, dtypes=FLOAT32, rngs=rngs)
        experts = MoE(width, F, E, A, gate=GATES["v3"], **shared)
        return Block(Attention(width, 4, 2, 8, **shared), experts, norm(), norm())

    return split(Transformer(toy.CONFIG, [(2, make_block)], rngs=nnx.Rngs(0), scan_layers=scan_layers, **options))


def run_decoder(**options: Any) -> Any:
    """(logits, router statistics, gradient) of packed rows with padding."""
    graph, params = build_decoder(**options)
    segments = np.repeat([[1, 2, 0], [1, 2, 0]], [7, 5, 2], axis=1)

    @jax.jit
    def run(params: Any) -> Any:
        def loss(params: Any) -> Any:
            model = merge(graph, params)
            states = model.hidden(tokens(2, 14), segment_ids=segments)
            logits = model.unembed(states.hidden)
            total = jnp.where(segments > 0, jax.nn.logsumexp(logits, axis=-1), 0).sum()
            return total + 0.1 * states.router["balance"].sum(), (logits, states.router)

        gradient, aux = jax.grad(loss, has_aux=True)(params)
        return aux, gradient

    return jax.device_get(run(params))


def test_scanned_and_recomputed_layers_route_alike() -> None:
    (logits, router), gradient = run_decoder()
    (scanned, scanned_router), scanned_gradient = run_decoder(scan_layers=True, remat="full")
    assert router["load"].shape == (2, E) and (router["load"].sum(-1) == 24 * A).all()
    assert_close((scanned, scanned_router), (logits, router))
    assert_close(scanned_gradient, jax.device_get(stack(gradient)), 2e-5)
