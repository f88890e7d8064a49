"""A tiny DeepSeek-V3 with its prediction depth on eight devices: losses, gradients, greedy tokens are those of one."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r1jax.core.distributed import put_global
from r1jax.core.sharding import MeshConfig, make_mesh, sharding, use_mesh
from r1jax.core.structs import Request, Sampling
from r1jax.losses.prediction import mtp_loss, next_token_loss
from r1jax.models.dispatch import Dispatch
from r1jax.models.families import deepseek_v3
from r1jax.models.mla import LatentSizes
from r1jax.models.mtp import predict_ahead
from r1jax.models.transformer import Params, logical_axes, merge, split
from r1jax.rollout.engine import Engine
from r1jax.rollout.slots import EngineConfig
from tests.models.toy import assert_close, tokens

CONFIG = deepseek_v3.Config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    latents=LatentSizes(24, 16, 8, 4, 6),
    expert_size=16,
    initializer_std=0.2,
)
ROWS, LENGTH = 8, 16
SEGMENTS = np.repeat(np.tile([[1, 2, 0]], (ROWS, 1)), [7, 6, 3], axis=1)
MIXED = "fsdp 2, expert 2, context 2"
MESHES = {
    "data 8": MeshConfig(),
    "fsdp 8": MeshConfig(data=1, fsdp=8),
    "expert 8": MeshConfig(data=1, expert=8),
    "context 8": MeshConfig(data=1, context=8),
    "data 2, tensor 4": MeshConfig(data=2, tensor=4),
    "data 2, fsdp 2, expert 2": MeshConfig(data=2, fsdp=2, expert=2),
    "data 2, expert 2, tensor 2": MeshConfig(data=2, expert=2, tensor=2),
    "expert 4, context 2": MeshConfig(data=1, expert=4, context=2),
    "fsdp 2, tensor 2, context 2": MeshConfig(data=1, fsdp=2, context=2, tensor=2),
    MIXED: MeshConfig(data=1, fsdp=2, expert=2, context=2),
}
SLOW = [pytest.param(name, marks=() if name == MIXED else pytest.mark.slow) for name in MESHES]


def build(**options: Any) -> tuple[nnx.GraphDef, Params]:
    """The model, each parameter on the current mesh where its axes say."""
    model = deepseek_v3.build(CONFIG, rngs=nnx.Rngs(0), **options)
    graph, params = split(model)
    return graph, put_global(
        jax.device_get(params), jax.tree.map(lambda x, a: sharding(a, x.shape), params, logical_axes(model))
    )


def on(mesh: str) -> Any:
    return use_mesh(make_mesh(MESHES[mesh])) if mesh else contextlib.nullcontext()


def run(mesh: str, **options: Any) -> Any:
    """(loss, loads, gradient) of packed rows: next tokens, tokens ahead, and the balance of experts."""
    with on(mesh):
        graph, params = build(**options)
        rows = put_global(tokens(ROWS, LENGTH), sharding(("batch", None), (ROWS, LENGTH)))

        @jax.jit
        def program(params: Params, rows: jax.Array) -> Any:
            def loss(params: Params) -> Any:
                model = merge(graph, params)
                states = model.hidden(rows, segment_ids=jnp.asarray(SEGMENTS))
                main, weight = next_token_loss(states.hidden, rows, model.unembed, segment_ids=jnp.asarray(SEGMENTS))
                depths, ahead = predict_ahead(model, states.hidden, rows, segment_ids=jnp.asarray(SEGMENTS))
                further = mtp_loss(depths, rows, model.unembed, segment_ids=jnp.asarray(SEGMENTS))
                balance = states.router["balance"].sum() + ahead["balance"].sum()
                load = jnp.concatenate([states.router["load"], ahead["load"]])
                return (main + 0.3 * further + 0.1 * balance) / weight, load

            (value, load), gradient = jax.value_and_grad(loss, has_aux=True)(params)
            return value, load, gradient

        return jax.device_get(program(params, rows))


@functools.cache
def on_one_device() -> Any:
    return run("", dispatch=Dispatch("dense"))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_loss_and_gradient_are_those_of_one_device(mesh: str) -> None:
    """Within 1e-5 of each tensor's norm; one device uses the dense reference, meshes what they choose by themselves."""
    (value, load, gradient), (expected, expected_load, expected_gradient) = run(mesh), on_one_device()
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_array_equal(load, expected_load)
    assert_close(gradient, expected_gradient, 1e-5)


@pytest.mark.parametrize("mesh", [pytest.param(m.values[0], marks=m.marks) for m in SLOW if m.values[0] != "context 8"])
def test_greedy_tokens_are_those_of_one_device(mesh: str) -> None:
    random = np.random.default_rng(0)
    sampling = Sampling(temperature=0.0, max_new_tokens=6)
    requests = [Request(tuple(random.integers(1, 64, size).tolist()), sampling) for size in random.integers(2, 8, 10)]
    shape = EngineConfig(slots=8, max_prompt_tokens=8, max_new_tokens=6, prefill_batch=8)
    found = []
    for name in ("", mesh):
        with on(name):
            graph, params = build()
            found.append([completion.tokens for completion in Engine(graph, shape).generate(params, requests)])
    assert found[0] == found[1]
