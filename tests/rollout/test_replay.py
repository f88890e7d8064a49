"""Router replay: the engine tells which experts it chose, and a trainer that computes otherwise takes them over."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from r1jax.core.structs import Completion, Request, Sampling
from r1jax.data.packing import RowShape, pack_completions
from r1jax.learner.balance import LOAD
from r1jax.learner.policy_objective import Scoring, make_loss, summarize
from r1jax.losses.policy import PolicyLossConfig
from r1jax.models.families import deepseek_v3
from r1jax.models.layers import FLOAT32, Dtypes
from r1jax.models.mla import LatentSizes
from r1jax.models.transformer import Params, merge, split
from r1jax.rollout.engine import Engine
from r1jax.rollout.slots import EngineConfig

CONFIG = deepseek_v3.Config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    latents=LatentSizes(0, 16, 8, 4, 8),
    expert_size=16,
    num_experts=16,
    active_experts=2,
    mtp_depths=0,
    initializer_std=0.2,
)
LAYERS, PROMPT, NEW = 2, 6, 20
LOW = Dtypes("float32", "bfloat16")


@functools.cache
def model(dtypes: Dtypes = FLOAT32, scan_layers: bool = False) -> tuple[nnx.GraphDef, Params]:
    """The same float32 weights, multiplied in one precision or another."""
    return split(deepseek_v3.build(CONFIG, rngs=nnx.Rngs(0), dtypes=dtypes, scan_layers=scan_layers))


@functools.cache
def sample(dtypes: Dtypes) -> tuple[list[tuple[int, ...]], list[Completion]]:
    """(prompts, completions) of an engine that records experts; two completions a prompt, slots are refilled."""
    random = np.random.default_rng(0)
    prompts = [tuple(random.integers(1, 64, size).tolist()) for size in random.integers(2, PROMPT + 1, 8)]
    limits = random.integers(NEW // 2, NEW + 1, 16)
    requests = [Request(prompts[i // 2], Sampling(max_new_tokens=int(limit)), seed=i) for i, limit in enumerate(limits)]
    config = EngineConfig(slots=6, max_prompt_tokens=PROMPT, max_new_tokens=NEW, prefill_batch=2, record_experts=True)
    graph, params = model(dtypes)
    return prompts, Engine(graph, config).generate(params, requests)


def train(dtypes: Dtypes, *, replays: bool, scan_layers: bool = False) -> dict[str, float]:
    """Metrics of the float32 trainer on what a sampler of the given precision sampled."""
    prompts, completions = sample(dtypes)
    owners = np.repeat(np.arange(len(prompts)), 2).tolist()
    packed = pack_completions(prompts, [c.tokens for c in completions], owners, RowShape(PROMPT, NEW, 2), multiple=1)
    fields = ("tokens", "positions", "segments", "prefixes", "index", "targets")
    batch: dict[str, Any] = {name: getattr(packed, name) for name in fields}
    logprobs = np.concatenate([c.logprobs for c in completions]).astype(np.float32)
    ones = np.ones_like(logprobs)
    batch |= {
        k: packed.lay_out(v)
        for k, v in zip(("sampler_logprobs", "weights", "advantages"), (logprobs, ones, ones), strict=True)
    }
    if replays:
        batch["experts"] = packed.lay_out(np.concatenate([c.experts for c in completions if c.experts is not None]), -1)
    graph, params = model(FLOAT32, scan_layers)
    loss = make_loss(graph, PolicyLossConfig(), Scoring(), on_policy=True)
    (_, sums), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, {}, batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert sums.pop(LOAD).shape == (LAYERS, CONFIG.num_experts)
    return summarize([[sums]])


def test_completions_tell_the_experts_of_every_token() -> None:
    """They are what the model chooses for the token before, in a pass over the whole sequence."""
    prompts, completions = sample(FLOAT32)
    graph, params = model()
    assert merge(graph, params).routing == (LAYERS, 2) == merge(*model(FLOAT32, True)).routing
    rows = np.zeros((len(completions), PROMPT + NEW), np.int32)
    for row, completion in zip(range(len(completions)), completions, strict=True):
        sequence = (*prompts[row // 2], *completion.tokens)
        rows[row, : len(sequence)] = sequence
    choice = np.asarray(jax.jit(lambda params: merge(graph, params).hidden(rows).router["choice"])(params))
    for row, completion in enumerate(completions):
        start, count = len(prompts[row // 2]) - 1, len(completion.tokens)
        assert completion.experts is not None and completion.experts.shape == (count, LAYERS, 2)
        np.testing.assert_array_equal(
            np.sort(completion.experts), np.sort(choice[:, row, start : start + count].swapaxes(0, 1))
        )


@pytest.mark.parametrize("scan_layers", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_replay_brings_sampler_and_trainer_together(scan_layers: bool) -> None:
    """A bfloat16 sampler and a float32 trainer choose differently for some tokens; told the choices, the trainer's
    log-probs are nearer to the sampler's."""
    own, told = train(LOW, replays=False), train(LOW, replays=True, scan_layers=scan_layers)
    assert 0.8 < told["router/agreement"] < 1 and "router/agreement" not in own
    key = "sampling/sampling_logp_difference/mean"
    assert told[key] < 0.8 * own[key]


def test_equal_precision_agrees_wholly() -> None:
    told = train(FLOAT32, replays=True)
    assert told["router/agreement"] == 1 and told["router/overflow"] == 0
    assert told["sampling/sampling_logp_difference/mean"] < 1e-5
