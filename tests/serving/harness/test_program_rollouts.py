"""GRPO whose trajectories are external programs: what is recorded, its log-probs, faults, and going on after a stop."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.core.metrics import read_rows
from r1jax.models.transformer import merge
from r1jax.sandbox.box import find_fault
from r1jax.stages.grpo import GRPORun
from tests.stages.runs import CONFIG, assert_same_run, read_settings, train

AGENT = Path(__file__).parent / "agent.py"
HARNESS: dict[str, Any] = {
    "data__template": "chat",
    "episode": '{"turn_tokens": 12, "max_tokens": 80}',
    "rollout__max_prompt_tokens": 64,
    "rewards": '{"environment_reward": 1.0}',
    "eval__strict": '["environment_reward"]',
    "eval__format": "",
}


def change(mode: str, **harness: Any) -> dict[str, Any]:
    return HARNESS | {"harness": json.dumps({"command": ["python", str(AGENT), mode], "workers": 8, **harness})}


@pytest.fixture
def make_run(tiny_model: Path, tmp_path: Path) -> Iterator[Any]:
    made: list[GRPORun] = []

    def make(mode: str, **changes: Any) -> GRPORun:
        harness = {name: changes.pop(name) for name in ("timeout", "isolation", "max_calls") if name in changes}
        changes = change(mode, **harness) | {"rollout__prompts_per_step": 2, "rollout__group_size": 4} | changes
        made.append(GRPORun(read_settings(CONFIG, model__name=tiny_model, **changes), tmp_path))
        return made[-1]

    yield make
    for run in made:
        run.episodes.close()  # type: ignore[union-attr]


def read_logprobs(run: GRPORun, drawn: Any) -> np.ndarray:
    """Log-probs of all sampled ids, each sequence by a forward pass of its own."""
    branches = drawn.groups.branches
    tokens, places = np.zeros((len(branches), 160), np.int32), []
    for i, branch in enumerate(branches):
        whole = [*branch.prompt, *branch.completion.tokens]
        tokens[i, : len(whole)] = whole
        places.append(len(branch.prompt) + branch.completion.places)
    rows, at = np.repeat(np.arange(len(branches)), [len(p) for p in places]), np.concatenate(places)

    def read(params: Any) -> jax.Array:
        logits = merge(run.graph, params)(tokens)[rows, at - 1] / run.settings.rollout.temperature
        return jax.nn.log_softmax(logits)[np.arange(len(at)), tokens[rows, at]]

    return np.asarray(jax.jit(read)(run.updates.weights()))


@pytest.mark.parametrize("mode", ["chat", "text"])
def test_calls_that_extend_each_other_are_one_trajectory(mode: str, make_run: Any) -> None:
    run = make_run(mode)
    drawn = run.rollouts.draw(run.updates.weights(), 1)
    completions, tokenizer = drawn.groups.completions, run.tokenizer
    assert [len(several) for several in drawn.groups.played] == [1] * 8
    assert {completion.finish_reason for completion in completions} <= {"stop", "length"}
    for completion, payment in zip(completions, drawn.scores.total, strict=True):
        said = [message["content"] for message in completion.messages if message["role"] == "assistant"]
        assert len(said) == 2 and payment == completion.payment == len("".join(said))
        assert completion.environment.said == "".join(said)
        given = tokenizer.decode(np.array(completion.tokens)[~np.array(completion.sampled)])
        assert ("go on" if mode == "chat" else " so ") in given
    assert len({completion.tokens for completion in completions}) > 4  # seeds differ
    assert drawn.metrics["env/turns/mean"] == 2 and drawn.metrics["env/trajectories/mean"] == 1
    recorded = np.concatenate([b.completion.sampled_logprobs for b in drawn.groups.branches])
    np.testing.assert_allclose(read_logprobs(run, drawn), recorded, rtol=0, atol=1e-5)


def test_calls_that_begin_anew_are_trajectories_of_one_reward(make_run: Any) -> None:
    run = make_run("forget", loss__aggregation="sequence", loss__kl_coefficient=0.1, loss__kl_in="reward")
    drawn = run.rollouts.draw(run.updates.weights(), 1)
    branches = drawn.groups.branches
    assert [branch.member for branch in branches] == [i for i in range(8) for _ in range(2)]
    assert drawn.metrics["env/trajectories/mean"] == 2
    recorded = np.concatenate([b.completion.sampled_logprobs for b in branches])
    np.testing.assert_allclose(read_logprobs(run, drawn), recorded, rtol=0, atol=1e-5)

    advantages, none = np.arange(8.0), np.zeros(8, bool)
    packed, arrays = run.updates._plan(drawn.groups, advantages, none, none)
    owners = np.repeat([b.member for b in branches], [b.completion.length for b in branches])
    np.testing.assert_array_equal(arrays["advantages"], advantages[owners])
    placed = np.zeros(len(recorded), np.float32)
    placed[packed.source[packed.source >= 0]] = packed.targets[packed.source >= 0]
    np.testing.assert_array_equal(
        placed, np.concatenate([np.array(b.completion.tokens)[b.completion.places] for b in branches])
    )
    assert run.updates.measure_kl(drawn.groups, 0.9).shape == (8,)
    metrics, samples = run.step(1)
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-5 and len(samples) == 8


def test_a_step_trains_on_what_programs_sampled(make_run: Any) -> None:
    run = make_run("chat")
    before = jax.tree.map(jnp.copy, run.updates.weights())
    metrics, samples = run.step(1)
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-5
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, run.updates.weights()))
    assert max(moved) > 0
    assert [message["role"] for message in samples[0]["messages"]] == ["assistant", "user", "assistant"]
    assert samples[0]["prompt"][0]["role"] == "user"


@pytest.mark.parametrize(
    ("mode", "kind"), [("crash", "died"), ("sleep", "time"), ("bad", "bad_result"), ("silent", "no_calls")]
)
def test_a_program_that_fails_costs_its_trajectory(mode: str, kind: str, make_run: Any) -> None:
    run = make_run(mode, timeout=1.5 if mode == "sleep" else 60, optimizer__weight_decay=0.0)
    drawn = run.rollouts.draw(run.updates.weights(), 1)
    assert {completion.finish_reason for completion in drawn.groups.completions} == {"fault"}
    assert drawn.excluded.all() and drawn.metrics["env/faults"] == drawn.metrics[f"env/events/{kind}"] == 8
    before = jax.tree.map(jnp.copy, run.updates.weights())
    run.step(2)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), before, run.updates.weights())))


def test_requests_over_the_limits_are_refused_and_the_program_goes_on(make_run: Any) -> None:
    run = make_run("long")
    drawn = run.rollouts.draw(run.updates.weights(), 1)
    assert drawn.metrics["env/faults"] == 0 and drawn.metrics["env/turns/mean"] == 2
    run = make_run("text", max_calls=1)
    drawn = run.rollouts.draw(run.updates.weights(), 1)
    assert drawn.metrics["env/events/died"] == 8 and drawn.metrics["env/turns/mean"] == 1


def test_keys_end_with_their_programs(make_run: Any) -> None:
    import http.client

    run = make_run("text")
    run.rollouts.draw(run.updates.weights(), 1)
    endpoint = run.episodes.endpoint
    assert not endpoint._sessions and endpoint.engine.free == endpoint.engine.config.slots
    host, port = endpoint.address.removeprefix("http://").removesuffix("/v1").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request("GET", "/v1/models", headers={"Authorization": "Bearer sk-none"})
    assert connection.getresponse().status == 401


@pytest.mark.skipif(find_fault() is not None, reason="no bubblewrap here")
def test_programs_in_the_sandbox_reach_the_endpoint_and_nothing_else(make_run: Any) -> None:
    plain, boxed = make_run("text"), make_run("text", isolation="sandbox")
    drawn = [run.rollouts.draw(run.updates.weights(), 1) for run in (plain, boxed)]
    assert drawn[1].metrics["env/faults"] == 0
    assert [c.tokens for c in drawn[0].groups.completions] == [c.tokens for c in drawn[1].groups.completions]


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("harness") / "run"
    train(workdir, tiny_model, **change("text"), checkpoint__every_steps=1, checkpoint__keep=5, steps=2)
    return workdir


def test_a_run_that_stopped_goes_on_to_the_same_bits(trained: Path, tiny_model: Path, tmp_path: Path) -> None:
    rows = read_rows(trained / "metrics.jsonl")
    assert "eval/sums/pass@1" in rows[0] and rows[-1]["env/faults"] == 0
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints" / "2")
    train(workdir, tiny_model, **change("text", workers=3), checkpoint__every_steps=1, checkpoint__keep=5, steps=2)
    assert_same_run(workdir, trained)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout__max_prompt_tokens": 0}, "config.rollout.max_prompt_tokens must be above 0 with a harness"),
        ({"environment": "guess_number"}, "config.harness.command must be empty with an environment"),
        ({"harness": '{"tasks": "x.jsonl"}'}, "config.harness.tasks needs config.harness.command"),
        ({"harness": '{"command": ["python"], "timeout": 0}'}, "config.harness.timeout must be positive"),
        ({"rollout__max_staleness": 1}, "config.rollout.max_staleness"),
    ],
)
def test_a_mistake_is_one_line(changes: dict[str, Any], message: str, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        GRPORun(read_settings(CONFIG, **{"model__name": tiny_model, **change("text"), **changes}), tmp_path)


def test_tasks_are_read_from_a_file(tiny_model: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "sums.jsonl"
    tasks.write_text("".join(json.dumps({"prompt": f"{n} + 1", "hint": n}) + "\n" for n in range(9)))
    settings = read_settings(CONFIG, model__name=tiny_model, **change("text", tasks=str(tasks)), data__eval_problems=2)
    run = GRPORun(settings, tmp_path)
    run.episodes.close()  # type: ignore[union-attr]
    drawn = [row for _ in range(2) for row in run.loader.take(4)]
    assert sorted({row["hint"] for row in [*drawn, *run.problems.rows]}) == list(range(9))
    assert run.eval.name == "sums"
