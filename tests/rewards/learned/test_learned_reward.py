"""Rewards by a reward model: what is put to it, what a mistake is called; and the true score beside it."""

from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards.base import connect_rewards, load_rewards, read_rewards, score
from r1jax.text.reasoning import cut_answer

PROMPTS, TEXTS = ["Say hello to Ann.", "2"], [" <think> a </think> <answer> Hello. </answer>", "<think> open"]


class Asked:
    """A rate that notes what it is asked and gives the lengths of texts."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __call__(self, model: str, prompts: Any, completions: Any, **how: Any) -> list[float]:
        self.calls.append((model, list(prompts), list(completions), how))
        return [float(len(text)) for text in completions]


def take(spec: dict[str, Any], rate: Any) -> Any:
    rewards = load_rewards(spec, rate=rate)
    return score(rewards, prompts=PROMPTS, completions=TEXTS, completion_ids=[[1], [1]], columns={}), rewards


def test_helpfulness_is_of_the_answer_and_harmlessness_of_the_whole_reply():
    asked = Asked()
    spec = {
        "helpful": {"function": "reward_model", "name": "helpful", "model": "rm", "weight": 2.0, "template": "plain"},
        "harmless": {"function": "reward_model", "name": "harmless", "model": "safe", "part": "reply", "squash": True},
        "request_score": {"weight": 0.0},
    }
    scores, rewards = take(spec, asked)
    (model, prompts, answers, how), (other, _, replies, _) = asked.calls
    assert (model, other, prompts, how["template"]) == ("rm", "safe", PROMPTS, "plain")
    assert answers == ["Hello.", ""] and replies == TEXTS
    assert scores.by_name["helpful"].tolist() == [6.0, 0.0]
    assert scores.by_name["harmless"] == pytest.approx([1.0, 1.0], abs=1e-4)
    assert scores.by_name["request_score"][0] == pytest.approx(0.5)
    assert all(reward.collective for reward in rewards if reward.name != "request_score")


def test_a_dpo_model_is_asked_with_its_reference():
    asked = Asked()
    take({"reward_model": {"model": "dpo", "reference": "base", "beta": 0.5}}, asked)
    assert asked.calls[0][0] == "dpo" and asked.calls[0][3] == {"template": "", "reference": "base", "beta": 0.5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "reward_model: model must name a reward model"),
        ({"model": "x", "part": "all"}, "reward_model: part must be answer or reply, got 'all'"),
        ({"model": "x", "beta": 0}, "reward_model: beta must be positive"),
        ({"model": "x", "ratio": 1}, "unknown argument"),
    ],
)
def test_a_mistake_is_named_before_a_model_is_loaded(settings: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        read_rewards({"reward_model": settings})


def test_without_a_model_to_ask_it_says_where_it_works():
    rewards = connect_rewards(read_rewards({"reward_model": {"model": "x"}}), None)
    with pytest.raises(UserError, match="scores in runs of stage = 'grpo'"):
        score(rewards, prompts=PROMPTS, completions=TEXTS, completion_ids=[[1], [1]], columns={})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think> a </think> <answer> b </answer> c", "b"),
        ("<think> a </think> b", "b"),
        ("plain", "plain"),
        ("<think> open", ""),
        ("<answer> x </answer><answer> y", "y"),
    ],
)
def test_the_answer_is_what_stands_behind_the_reasoning(text: str, answer: str):
    assert cut_answer(text) == answer
