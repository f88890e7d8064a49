"""Format and language on `cases/shape_cases.jsonl`: what is invisible, copied, hidden or mathematics."""

import json
from pathlib import Path

import pytest

from r1jax.rewards import language_consistency_reward, r1_format_reward

CASES = [json.loads(line) for line in Path(__file__).with_name("cases").joinpath("shape_cases.jsonl").open()]


def of(function):
    return [case for case in CASES if case["function"] == function]


def test_there_are_enough_of_them():
    assert len(CASES) >= 150


@pytest.mark.parametrize(
    "case", of("r1_format_reward"), ids=lambda case: f"{case['klass']} {case['completion']!a}"[:60]
)
def test_the_format_is_paid_where_both_parts_say_something(case):
    assert r1_format_reward([case["completion"]], prompts=[case.get("prompt", "")]) == [case["expected"]]


@pytest.mark.parametrize(
    "case", of("language_consistency_reward"), ids=lambda case: f"{case['klass']} {case['completion']!a}"[:60]
)
def test_the_share_of_the_language(case):
    (share,) = language_consistency_reward([case["completion"]], language=case["gold"])
    assert share >= 0.9 if case["expected"] else share <= 0.5


def test_a_prompt_in_messages_has_placeholders_too():
    system = "Write <think> the work </think> <answer> the number </answer>"
    prompt = [{"role": "system", "content": system}, {"role": "user", "content": "3 + 4?"}]
    copied, own = ("<think>The work</think><answer>The number</answer>", "<think>3 + 4</think><answer>7</answer>")
    assert r1_format_reward([copied, own], prompts=[prompt] * 2) == [0.0, 1.0]
