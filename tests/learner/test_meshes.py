"""Losses and gradients of both kinds of training on eight devices, however the mesh cuts them, are those of one.

A dense model and one in DeepSeek-V3's shape; greedy tokens on meshes are in tests/rollout and in
tests/models/test_expert_meshes.py.
"""

import contextlib
import functools
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from r1jax.core.distributed import put_global
from r1jax.core.sharding import MeshConfig, make_mesh, sharding, use_mesh
from r1jax.learner import supervised
from r1jax.learner.policy_objective import Scoring, score_rows
from r1jax.learner.policy_objective import make_loss as make_policy_loss
from r1jax.losses.policy import PolicyLossConfig
from r1jax.models.dispatch import GROUPED, Dispatch
from r1jax.models.families import deepseek_v3, llama
from r1jax.models.mla import LatentSizes
from r1jax.models.transformer import Params, logical_axes, split
from tests.learner import rows
from tests.models import toy

MESHES = {
    "data 8": MeshConfig(),
    "fsdp 8": MeshConfig(data=1, fsdp=8),
    "expert 8": MeshConfig(data=1, expert=8),
    "context 8": MeshConfig(data=1, context=8),
    "data 4, tensor 2": MeshConfig(data=4, tensor=2),
    "data 2, fsdp 2, expert 2": MeshConfig(data=2, fsdp=2, expert=2),
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "expert 4, context 2": MeshConfig(data=1, expert=4, context=2),
    "fsdp 2, context 2, tensor 2": MeshConfig(data=1, fsdp=2, context=2, tensor=2),
    "fsdp 2, expert 2, context 2": MeshConfig(data=1, fsdp=2, expert=2, context=2),
}
DEEPSEEK = deepseek_v3.Config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    latents=LatentSizes(24, 16, 8, 4, 6),
    expert_size=16,
    initializer_std=0.2,
)
ROWS, LENGTH = 8, 16
SCORING = Scoring(rows.TEMPERATURE, 4, rows.PREFIX)


def make_model(family: str, dispatch: Dispatch) -> Any:
    if family == "llama":
        return llama.build(toy.CONFIG, rngs=nnx.Rngs(0))
    return deepseek_v3.build(DEEPSEEK, rngs=nnx.Rngs(0), dispatch=dispatch)


@functools.cache
def packed_documents() -> supervised.Batch:
    """Two documents and padding in each row, some targets without weight; the last row is empty."""
    random = np.random.default_rng(0)
    segments = np.repeat(np.tile([[1, 2, 0]], (ROWS, 1)), [7, 6, 3], axis=1).astype(np.int32)
    segments[-1] = 0
    tokens, targets = (random.integers(1, 64, (ROWS, LENGTH)).astype(np.int32) for _ in range(2))
    weights = (segments > 0) * random.choice([0, 1, 0.5], (ROWS, LENGTH), p=[0.3, 0.6, 0.1])
    return {
        "tokens": tokens,
        "targets": targets,
        "segments": segments,
        "positions": np.tile(np.r_[0:7, 0:6, 0:3], (ROWS, 1)).astype(np.int32),
        "weights": weights.astype(np.float32),
    }


def run(stage: str, family: str, mesh: str) -> tuple[float, Params]:
    """(loss, gradient) of one batch, on a mesh or on one device, where experts are the dense reference."""
    with use_mesh(make_mesh(MESHES[mesh])) if mesh else contextlib.nullcontext():
        model = make_model(family, GROUPED if mesh else Dispatch("dense"))
        graph, params = split(model)
        place = lambda x, axes: sharding(axes, x.shape)
        params = put_global(jax.device_get(params), jax.tree.map(place, params, logical_axes(model)))
        if stage == "grpo":
            config = PolicyLossConfig(clip_low=0.1, clip_high=0.2, kl_coefficient=0.1)
            loss = make_policy_loss(graph, config, SCORING, on_policy=False)
            (batch,) = rows.batches(ROWS, "old_logprobs", "reference_logprobs", **near(family))
        else:
            loss = supervised.make_loss(graph, supervised.SupervisedConfig(balance_weight=0.01), chunk=4)
            (whole,) = supervised.share_weights([packed_documents()])
            batch = put_global(
                whole, {k: sharding(("batch", None)[: np.ndim(x)], np.shape(x)) for k, x in whole.items()}
            )
        (value, _), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, {}, batch)
        return float(value), jax.device_get(gradient)


@functools.cache
def near(family: str) -> dict[str, np.ndarray]:
    """Log-probs of the sampler, of old and of reference weights, by completion token: the model's own with noise, for
    ratios as training has them."""
    graph, params = split(make_model(family, Dispatch("dense")))
    (batch,) = rows.batches(ROWS)
    mine = rows.unfold(jax.jit(lambda params: score_rows(graph, params, batch, SCORING)[0])(params))
    random = np.random.default_rng(1)
    noise = {"sampler_logprobs": 1e-3, "old_logprobs": 0.3, "reference_logprobs": 0.3}
    return {name: (mine + random.normal(0, size, mine.shape)).astype(np.float32) for name, size in noise.items()}


@functools.cache
def on_one_device(stage: str, family: str) -> tuple[float, Params]:
    return run(stage, family, "")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("family", ["llama", "deepseek"])
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_loss_and_gradient_are_those_of_one_device(stage: str, family: str, mesh: str) -> None:
    """Within 1e-5 of each tensor's norm."""
    (value, gradient), (expected, expected_gradient) = run(stage, family, mesh), on_one_device(stage, family)
    assert value == pytest.approx(expected, rel=1e-5)
    toy.assert_close(gradient, expected_gradient, 1e-5)
