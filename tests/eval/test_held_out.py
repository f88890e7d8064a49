"""Held-out problems: what is asked for, what counts as right, and the standard errors."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest

from r1jax.core.structs import Completion, Request, Sampling
from r1jax.eval import held_out
from r1jax.eval.held_out import EvalConfig, Problems, evaluate
from r1jax.rewards.base import Reward, load_rewards

SAMPLING = Sampling(temperature=0.6, top_k=20, max_new_tokens=50, stop_ids=(2,))
GOOD = "<think> 3 + 4 = 7 </think>\n<answer> 7 </answer>"
TEXTS = {  # what the stand-in model says, by token
    10: GOOD,
    11: "It is 7",  # the last number alone is right
    12: "<think> 3 + 4 = 8 </think>\n<answer> 8 </answer>",  # the format alone is right
    13: "no idea",
    14: "<answer> 7 </answer>",  # the answer without the format
}


def decode(tokens: Sequence[int]) -> str:
    return "".join(TEXTS[token] for token in tokens if token in TEXTS)


class Model:
    """Says what it is told to: one token for each sampled request, then one for each greedy one."""

    def __init__(self, sampled: Sequence[int], greedy: Sequence[int]):
        self.says = [*sampled, *greedy]
        self.requests: list[Request] = []

    def __call__(self, requests: list[Request]) -> list[Completion]:
        assert not self.requests, "both passes must go through one call"
        assert len(requests) == len(self.says)
        self.requests = requests
        return [Completion((says, 2) + (9,) * i, (0.0,) * (2 + i), "stop") for i, says in enumerate(self.says)]


def make_problems(count: int, names: Sequence[str]) -> Problems:
    rows = [{"prompt": f"What is 3 + 4? ({i})", "solution": "7"} for i in range(count)]
    scorers = {name: load_rewards({name: 1.0})[0] for name in names}
    return Problems(rows, [(5, 6, i) for i in range(count)], scorers)


STRICT = EvalConfig("sums", strict=("answer_reward", "r1_format_reward"), format="r1_format_reward")
NAMES = ("answer_reward", "r1_format_reward", "number_reward")


def run(model: Model, config: EvalConfig = STRICT, count: int = 5, seed: int = 3) -> dict[str, float]:
    metrics = evaluate(model, decode, make_problems(count, NAMES), config, SAMPLING, seed=seed)
    assert all(name.startswith("eval/sums/") for name in metrics)
    return {name.removeprefix("eval/sums/"): value for name, value in metrics.items()}


def test_every_score_and_its_standard_error():
    metrics = run(Model([10, 11, 12, 13, 14], [10, 10, 10, 11, 13]))
    right = {  # strict needs both rewards; lenient takes the last number wherever it stands
        "pass@1": [1, 0, 0, 0, 0],
        "greedy": [1, 1, 1, 0, 0],
        "lenient": [1, 1, 0, 0, 1],
        "greedy_lenient": [1, 1, 1, 1, 0],
        "format_rate": [1, 0, 1, 0, 0],
        "greedy_format_rate": [1, 1, 1, 0, 0],
    }
    for name, values in right.items():
        assert metrics[name] == pytest.approx(np.mean(values)), name
        assert metrics[f"{name}_stderr"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(5)), name
    assert metrics["mean_length"] == np.mean([2, 3, 4, 5, 6])  # of the sampled ones
    assert metrics["problems"] == 5
    assert set(metrics) == {*right, *(f"{name}_stderr" for name in right), "mean_length", "problems"}


def test_what_is_asked_of_the_model():
    model = Model([10] * 5, [10] * 5)
    run(model, dataclasses.replace(STRICT, temperature=0.8))
    sampled, greedy = model.requests[:5], model.requests[5:]
    assert [request.tokens for request in sampled] == [request.tokens for request in greedy]
    assert {request.sampling for request in sampled} == {dataclasses.replace(SAMPLING, temperature=0.8)}
    assert {request.sampling for request in greedy} == {dataclasses.replace(SAMPLING, temperature=0.0)}
    assert len({request.seed for request in sampled}) == 5


def test_the_noise_is_that_of_the_seed_alone():
    """The same at each evaluation of a run, so that two of them differ by the weights only."""
    seeds = []
    for seed in (3, 3, 4):
        model = Model([10] * 5, [10] * 5)
        run(model, seed=seed)
        seeds.append([request.seed for request in model.requests])
    assert seeds[0] == seeds[1] != seeds[2]


def test_without_a_format_there_is_no_format_rate():
    config = EvalConfig("sums", strict=("number_reward",))
    metrics = run(Model([11, 10, 13, 12, 14], [11] * 5), config)
    assert metrics["pass@1"] == metrics["lenient"] == pytest.approx(0.6)
    assert metrics["greedy"] == 1.0 and metrics["greedy_stderr"] == 0.0
    assert not [name for name in metrics if "format" in name]


def test_one_problem_has_no_spread():
    metrics = run(Model([10], [13]), count=1)
    assert (metrics["pass@1"], metrics["pass@1_stderr"], metrics["greedy"]) == (1.0, 0.0, 0.0)


def test_a_partly_right_answer_is_wrong_and_none_is_too():
    """Strict is 1 or nothing: a reward of 0.5, or None for a row it does not apply to, is no success."""

    def half_reward(completions: Sequence[str], **columns: object) -> list[float | None]:
        return [1.0, 0.5, None, 0.99, 1.0][: len(completions)]

    problems = make_problems(5, NAMES)
    half = dataclasses.replace(problems.scorers["number_reward"], name="half_reward", function=half_reward)
    problems = dataclasses.replace(problems, scorers={**problems.scorers, "half": half})
    config = EvalConfig("sums", strict=("half",))
    metrics = evaluate(Model([10] * 5, [10] * 5), decode, problems, config, SAMPLING, seed=0)
    assert metrics["eval/sums/pass@1"] == pytest.approx(0.4)


def test_short_names_of_rewards_score_too():
    """`accuracy` is a name that open-r1's recipes use; its function is called accuracy_reward."""
    problems = make_problems(2, ("tag_count", "number_reward"))
    config = EvalConfig("sums", strict=("tag_count",))
    metrics = evaluate(Model([13, 13], [13, 13]), decode, problems, config, SAMPLING, seed=0)
    assert metrics["eval/sums/pass@1"] == 0.0


def test_sampling_at_temperature_zero_is_greedy():
    config = dataclasses.replace(STRICT, temperature=0.0)
    metrics = run(Model([10, 10, 13, 13, 13], [10, 10, 13, 13, 13]), config)
    assert metrics["pass@1"] == metrics["greedy"] == pytest.approx(0.4)


def brevity_reward(completions: Sequence[str], **columns: object) -> list[float | None]:
    """1 for a short reply, 0.25 for a long one; it does not apply to an empty one."""
    return [None if not text else 1.0 if len(text) < 10 else 0.25 for text in completions]


def within_group(completions: Sequence[str], group_ids: Sequence[int], **columns: object) -> list[float]:
    return [1.0] * len(completions)


def test_the_runs_own_rewards_are_measured_by_name():
    """By their mean over the problems to which they apply, with its standard error, on sampled replies."""
    rows = [{"prompt": f"Say hello ({i})", "solution": "7"} for i in range(3)]
    rewards = [Reward("brevity_reward", brevity_reward, 1.0), Reward("within_group", within_group, 1.0)]
    rewards += load_rewards({"answer_reward": 1.0})
    problems = held_out.make_problems(rows, lambda prompt: (5,), EvalConfig("sums"), rewards)
    metrics = evaluate(Model([11, 13, 2], [10, 10, 10]), decode, problems, EvalConfig("sums"), SAMPLING, seed=3)
    assert metrics["eval/sums/brevity_reward"] == 1.0  # of two of the three replies
    assert metrics["eval/sums/brevity_reward_stderr"] == 0.0
    metrics = evaluate(Model([11, 10, 2], [10, 10, 10]), decode, problems, EvalConfig("sums"), SAMPLING, seed=3)
    assert metrics["eval/sums/brevity_reward"] == 0.625
    assert math.isclose(metrics["eval/sums/brevity_reward_stderr"], 0.375)
    assert metrics["eval/sums/greedy"] == 1.0, "strict and lenient stay beside it"
    assert not any("within_group" in name or "answer_reward" in name for name in metrics)


@pytest.mark.parametrize("rows", [[{"prompt": "Say hello"}] * 2, [{"prompt": "Say hello", "solution": ""}] * 2])
def test_without_an_answer_to_compare_there_is_no_rate(rows: list[dict[str, str]]):
    config = EvalConfig("", strict=("answer_reward", "r1_format_reward"), format="r1_format_reward")
    problems = held_out.make_problems(rows, lambda prompt: (5,), config, [Reward("brevity", brevity_reward, 1.0)])
    metrics = evaluate(Model([11, 13], [10, 10]), decode, problems, config, SAMPLING, seed=3)
    assert {name for name in metrics if not name.endswith("_stderr")} == {
        f"eval/held_out/{name}" for name in ("brevity", "format_rate", "greedy_format_rate", "mean_length", "problems")
    }
