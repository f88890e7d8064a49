"""GRPO with environments: a step against a batch made by hand, what is written, and going on after a stop."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.core.metrics import read_rows
from r1jax.losses.advantage import group_advantages
from r1jax.models.transformer import merge
from r1jax.stages.grpo import GRPORun
from tests.stages.episodes import EPISODES
from tests.stages.runs import CONFIG, assert_same_run, read_settings, train


def make_run(model: Path, workdir: Path, **changes: Any) -> GRPORun:
    return GRPORun(read_settings(CONFIG, model__name=model, **EPISODES, **changes), workdir)


def test_a_step_equals_a_batch_made_by_hand(tiny_model: Path, tmp_path: Path) -> None:
    """Two turns: every token's log-prob by a forward pass of its own sequence, and the gradient of the GRPO loss."""
    run = make_run(tiny_model, tmp_path)
    weights = run.updates.weights()
    drawn = run.rollouts.draw(weights, 1)
    G, completions = 8, drawn.groups.completions
    assert max(sum(m["role"] == "assistant" for m in c.messages) for c in completions) >= 2
    rewards_PG = drawn.scores.total.reshape(-1, G)
    heard = [sum(len(m["content"]) for m in c.messages if m["role"] == "assistant") for c in completions]
    answered = np.array([c.finish_reason != "length" for c in completions])
    np.testing.assert_array_equal(drawn.scores.total[answered], np.array(heard)[answered])
    advantages_PG, _ = group_advantages(rewards_PG, min_group_std=1e-3)
    expected = (rewards_PG - rewards_PG.mean(1, keepdims=True)) / (rewards_PG.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(advantages_PG, expected, rtol=1e-6)
    assert all(sampled == (p != 0.0) for c in completions for sampled, p in zip(c.sampled, c.logprobs, strict=True))

    heat, graph = run.settings.rollout.temperature, run.graph
    total = sum(c.length for c in completions)

    tokens, places = np.zeros((len(completions), 160), np.int32), []
    for i, c in enumerate(completions):
        prompt = drawn.groups.prompts[i // G]
        tokens[i, : len(prompt) + len(c.tokens)] = [*prompt, *c.tokens]
        places.append(len(prompt) + c.places)
    rows, at = np.repeat(np.arange(len(completions)), [len(p) for p in places]), np.concatenate(places)

    def read(params: Any) -> jax.Array:
        return jax.nn.log_softmax(merge(graph, params)(tokens)[rows, at - 1] / heat)[np.arange(total), tokens[rows, at]]

    def by_hand(params: Any) -> jax.Array:
        logprobs = read(params)
        ratio = jnp.exp(logprobs - jax.lax.stop_gradient(logprobs))
        return -(ratio * advantages_PG.ravel()[rows]).sum() / total

    sampled = np.concatenate([c.sampled_logprobs for c in completions])
    np.testing.assert_allclose(jax.jit(read)(weights), sampled, rtol=0, atol=1e-5)
    gradient = jax.jit(jax.grad(by_hand))(weights)
    none = np.zeros(len(completions), bool)
    packed, arrays = run.updates._plan(drawn.groups, advantages_PG.ravel(), none, none)
    assert int((packed.source >= 0).sum()) == total
    batches = run.updates._batches(packed, arrays, heat)
    differentiate = jax.jit(jax.grad(run.updates.objective.loss_fn, has_aux=True))
    parts = [differentiate(weights, {}, batch)[0] for batch in batches]
    for found, wanted in zip(
        *(jax.tree.leaves(tree) for tree in (jax.tree.map(lambda *x: sum(x), *parts), gradient)), strict=True
    ):
        assert float(jnp.linalg.norm(found - wanted)) <= 2e-5 * float(jnp.linalg.norm(wanted)) + 1e-9


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("episodes") / "run"
    train(workdir, tiny_model, **EPISODES, checkpoint__every_steps=1, checkpoint__keep=5, train__updates_per_step=2)
    return workdir


def test_metrics_and_samples_tell_the_turns(trained: Path) -> None:
    rows = read_rows(trained / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row in rows[1:]:
        assert row["sampling/sampling_logp_difference/max"] < 1e-5
        assert row["env/turns/mean"] > 1 and row["env/faults"] == 0 and row["tools/call_frequency"] == 0
        assert {"time/environments", "time/parked", "rewards/environment_reward/mean"} <= row.keys()
    assert "eval/sums/mean_turns" in rows[0] and "eval/sums/pass@1" in rows[-1]
    samples = [json.loads(line) for line in (trained / "samples.jsonl").read_text().splitlines()]
    several = next(row for row in samples if len(row["messages"]) > 2)
    assert [message["role"] for message in several["messages"][:3]] == ["assistant", "user", "assistant"]
    assert " Seed " in several["prompt"][-1]["content"]  # with what reset added


def test_a_run_that_stopped_goes_on_to_the_same_bits(trained: Path, tiny_model: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    for step in (2, 3):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    slow = {**EPISODES, "environment": "tests.environments.toys:Talker"}
    train(workdir, tiny_model, **slow, checkpoint__every_steps=1, checkpoint__keep=5, train__updates_per_step=2)
    assert_same_run(workdir, trained)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": "tests.environments.toys:Nobody"}, "config.environment: cannot import"),
        ({"train__replay_experts": True}, "config.train.replay_experts must be false with an environment"),
        ({"episode__max_turns": 0}, "config.episode.max_turns must be at least 1, got 0"),
        ({"environment": ""}, "config.rewards.environment_reward needs config.environment"),
    ],
)
def test_a_mistake_is_one_line(changes: dict[str, Any], message: str, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        GRPORun(read_settings(CONFIG, **{"model__name": tiny_model, **EPISODES, **changes}), tmp_path)
