"""Weights that change hands: plans of exchanges, arrays bit for bit, and the tokens that another layout samples."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r1jax.core.distributed import put_global
from r1jax.core.sharding import (
    ONE_DEVICE,
    Layout,
    MeshConfig,
    current_layout,
    make_mesh,
    sharding,
    use_layout,
    use_mesh,
)
from r1jax.core.structs import Completion, Request, Sampling
from r1jax.models import stacks
from r1jax.models.families import deepseek_v3, llama
from r1jax.models.transformer import Params, logical_axes, split
from r1jax.rollout.engine import Engine
from r1jax.rollout.handover import Handover, Move, find_weights, plan_moves
from r1jax.rollout.layout import choose_layout, find_bytes
from r1jax.rollout.slots import EngineConfig
from tests.models.test_expert_meshes import CONFIG as LATENT

DENSE = llama.Config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=8,
    initializer_std=0.2,
)
TRAINING = {
    "data 8": MeshConfig(),
    "fsdp 8": MeshConfig(data=1, fsdp=8),
    "fsdp 2, expert 4": MeshConfig(data=1, fsdp=2, expert=4),
    "data 2, expert 2, tensor 2": MeshConfig(data=2, expert=2, tensor=2),
    "fsdp 2, context 2, tensor 2": MeshConfig(data=1, fsdp=2, context=2, tensor=2),
}
ROLLOUT = ("auto", "tensor=4", "fsdp=2,context=2,tensor=2")
DEFAULT = {
    ("latent", "fsdp 2, expert 4", "fsdp=2,context=2,tensor=2"),
    ("latent", "fsdp 8", "auto"),
    ("dense", "data 2, expert 2, tensor 2", "tensor=4"),
}
CASES = [
    pytest.param(*case, marks=() if case in DEFAULT else pytest.mark.slow)
    for case in (
        (kind, training, rollout) for kind in ("dense", "latent") for training in TRAINING for rollout in ROLLOUT
    )
]
SHAPE = EngineConfig(slots=8, max_prompt_tokens=8, max_new_tokens=6, prefill_batch=8)
FREE = 2**33


def build(kind: str, scan_layers: bool = False) -> tuple[nnx.GraphDef, Params]:
    """The model, each parameter on the current mesh where its axes say."""
    options: dict[str, Any] = dict(rngs=nnx.Rngs(0), scan_layers=scan_layers)
    model = llama.build(DENSE, **options) if kind == "dense" else deepseek_v3.build(LATENT, **options)
    graph, params = split(model)
    places = jax.tree.map(lambda x, a: sharding(a, x.shape), params, logical_axes(model))
    return graph, put_global(jax.device_get(params), places)


def make_requests() -> list[Request]:
    random = np.random.default_rng(0)
    sampling = Sampling(temperature=0.0, max_new_tokens=6)
    return [Request(tuple(random.integers(1, 64, size).tolist()), sampling) for size in random.integers(2, 8, 10)]


def find_layout(params: Params, model: Any, training: Layout, rollout: str) -> Layout:
    weights = find_weights(params, logical_axes(model), "float32")
    return choose_layout(training, rollout, {}, weights, free=FREE, rows=(8,))


@functools.cache
def on_one_device(kind: str) -> list[Completion]:
    graph, params = build(kind)
    return Engine(graph, SHAPE).generate(params, make_requests())


@pytest.mark.parametrize(("kind", "training", "rollout"), CASES)
def test_another_layout_samples_the_tokens_of_one_device(kind: str, training: str, rollout: str) -> None:
    """And the weights are the same, bit for bit."""
    with use_mesh(make_mesh(TRAINING[training])):
        graph, params = build(kind, scan_layers=rollout != "auto")
        model = nnx.merge(graph, params)
        handover = Handover(graph, params, current_layout(), find_layout(params, model, current_layout(), rollout), "")
        weights = handover(params)
        with use_layout(handover.layout):
            engine = Engine(handover.graph, SHAPE)
        found = engine.generate(weights, make_requests())
    assert handover.is_identity == (rollout == "auto" and training == "data 8")
    assert handover.is_identity or "mtp" not in weights
    kept = {name: part for name, part in params.items() if name != "mtp"}
    for one, other in zip(jax.tree.leaves({**weights, "mtp": ()}), jax.tree.leaves(kept), strict=True):
        assert isinstance(one.sharding, jax.NamedSharding) and one.sharding.mesh == handover.layout.mesh
        np.testing.assert_array_equal(one, other)
    for one, other in zip(found, on_one_device(kind), strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-5)
    assert bool(engine.take_metrics()) == (kind == "latent" and not handover.is_identity)


def test_layers_inside_their_stacks_sample_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As TPUs have it: columns are written into the stack, and experts are read there."""
    monkeypatch.setattr(stacks, "are_read_in_place", lambda: True)
    test_another_layout_samples_the_tokens_of_one_device("latent", "fsdp 2, expert 4", "fsdp=2,context=2,tensor=2")


def test_the_layout_of_training_changes_nothing() -> None:
    graph, params = build("dense")
    handover = Handover(graph, params, ONE_DEVICE, ONE_DEVICE, "")
    assert handover.is_identity and handover(params) is params and handover.graph is graph
    assert handover.programs(params) == []


def test_kernels_are_narrowed_and_norms_and_routers_are_not() -> None:
    """Also on one device, where only the dtype differs; the model that samples computes in it."""
    graph, params = build("latent")
    handover = Handover(graph, params, ONE_DEVICE, ONE_DEVICE, "bfloat16")
    weights = handover(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        names = jax.tree_util.keystr(path)
        assert leaf.dtype == (jnp.float32 if "router" in names or "scale" in names else jnp.bfloat16), names
    model = nnx.merge(handover.graph, weights)
    assert model.hidden(jnp.zeros((1, 4), jnp.int32)).hidden.dtype == jnp.bfloat16
    found = Engine(handover.graph, SHAPE).generate(weights, make_requests())
    assert [len(completion.tokens) for completion in found] == [6] * 10


def test_nothing_passes_through_a_device_that_does_not_keep_it() -> None:
    """The program exchanges experts by all-to-all and holds no array that is whole and stays so nowhere."""
    with use_mesh(make_mesh(TRAINING["fsdp 2, expert 4"])):
        graph, params = build("latent", scan_layers=True)
        training = current_layout()
        layout = find_layout(params, nnx.merge(graph, params), training, "fsdp=2,context=2,tensor=2")
        handover = Handover(graph, params, training, layout, "")
        program = handover.programs(params)[0]
        with use_layout(program.layout):
            text = program.function.lower(*program.arguments).compile().as_text()
        whole = max(leaf.size for leaf in jax.tree.leaves(params["stacks"][1]["mlp"]["experts"]))
        held = max(math.prod(map(int, sizes.split(","))) for sizes in re.findall(r"f32\[([\d,]+)\]", text))
        assert "all-to-all" in text and held < whole
        assert find_bytes(handover.shapes(params)) < find_bytes(params, width=4) * 8


@pytest.mark.parametrize(
    ("source", "target", "moves"),
    [
        ((("a", "b"), ()), (("a", "b"), ()), []),
        ((("a", "b"), ()), (("a",), ("b",)), [Move("b", 0, 1)]),
        ((("a", "b"), ()), ((), ("b",)), [Move("b", 0, 1), Move("a", 0, -1)]),
        (((), ()), (("a",), ("b",)), [Move("a", -1, 0), Move("b", -1, 1)]),
        # experts over c, their input over (a, b) -> experts over (c, b), their width over a
        (
            (("c",), ("a", "b"), ()),
            (("c", "b"), (), ("a",)),
            [Move("b", 1, 0), Move("a", 1, 2)],
        ),
        ((("a", "b"),), (("b", "a"),), [Move("b", 0, -1), Move("a", 0, -1), Move("b", -1, 0), Move("a", -1, 0)]),
    ],
)
def test_plans_cut_first_then_exchange_then_gather(source: Any, target: Any, moves: list[Move]) -> None:
    assert plan_moves(source, target) == moves
