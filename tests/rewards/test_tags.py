"""Format rewards: open-r1's to the letter, checked against its two patterns' wording, and R1's own rule."""

import itertools
import re

import pytest

from r1jax.rewards.tags import format_reward, get_code_format_reward, r1_format_reward, tag_count_reward

GOOD = "<think>\nSome reasoning\n</think>\n<answer>\nThe answer\n</answer>"


def as_messages(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (GOOD, 1.0),
        ("<think>\n1. Purple scooter\n2. Red bicycle\n\nThere are 2.\n</think>\n<answer>\n2\n</answer>", 1.0),
        (GOOD + "\nmore", 1.0),
        ("<think>\n\n</think>\n<answer>\n\n</answer>", 1.0),
        (GOOD + " ", 0.0),
        (" " + GOOD, 0.0),
        ("<think>\n</think>\n<answer>\n\n</answer>", 0.0),
        ("<think>\n\n</think>\n<answer>\n</answer>", 0.0),
        ("<think>Only thinking</think>", 0.0),
        ("<answer>Only answer</answer>", 0.0),
        ("No tags at all", 0.0),
        ("", 0.0),
        ("<think>Missing closing</think><answer>Missing closing", 0.0),
        ("<think>Wrong order</answer><answer>Wrong order</think>", 0.0),
    ],
)
def test_format_reward_cases(text, value):
    assert format_reward([text, as_messages(text)], solution=["x", "x"]) == [value, value]


def test_format_reward_equals_its_pattern_on_all_short_texts():
    """The linear search must accept just what the pattern does that open-r1 documents."""
    pattern = re.compile(r"^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$", re.DOTALL | re.MULTILINE)
    pieces = ["<think>\n", "\n</think>\n<answer>\n", "\n</answer>", "\n", "x"]
    texts = ["".join(parts) for n in range(7) for parts in itertools.product(pieces, repeat=n)]
    expected = [1.0 if pattern.match(text) else 0.0 for text in texts]
    assert 0 < sum(expected) < len(texts)
    assert format_reward(texts) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (GOOD, 1.0),
        ("<think>\nx\n</think>\n", 0.5),
        ("<think>x</think><answer>y</answer>", 0.0),
        ("<think>\n<think>\nx\n</think>\n<answer>\ny\n</answer>", 0.75),
        ("", 0.0),
    ],
)
def test_tag_count_reward(text, value):
    assert tag_count_reward([text, as_messages(text)]) == [value, value]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (GOOD, 1.0),
        ("<think> 3 + 4 = 7 </think> <answer> 7 </answer>", 1.0),
        ("\n <think>x</think><answer>y</answer>\n\n", 1.0),
        ("<think></think><answer>y</answer>", 0.0),
        ("<think>x</think><answer> \n</answer>", 0.0),
        ("Well: <think>x</think><answer>y</answer>", 0.0),
        ("<think>x</think> so <answer>y</answer>", 0.0),
        ("<think>x</think><answer>y</answer> done", 0.0),
        ("<think>x<think></think><answer>y</answer>", 0.0),
        ("<think>x</think><answer>y</answer><answer>z</answer>", 0.0),
        ("<answer>y</answer><think>x</think>", 0.0),
        ("<think>x<answer>y</answer></think>", 0.0),
        ("<think>x</answer></think><answer>y", 0.0),
        ("x</think><answer>y</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_r1_format_reward(text, value):
    assert r1_format_reward([text, as_messages(text)], prompts=["What?", [{"role": "user", "content": "?"}]]) == [
        value,
        value,
    ]


def test_r1_format_reward_goes_on_from_an_open_tag_in_the_prompt():
    rest = "x</think> <answer>y</answer>"
    example = "Q: 1 + 1? <think>a</think><answer>2</answer>\nQ: What? A:"
    opened = "User: What? Assistant: <think>\n"
    prefill = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "<think>\n"}]
    assert r1_format_reward([rest] * 3, prompts=[example, opened, prefill]) == [0.0, 1.0, 1.0]
    assert r1_format_reward(["<think>" + rest] * 3, prompts=[example, opened, prefill]) == [1.0, 0.0, 0.0]
    assert r1_format_reward([rest], prompts=[prefill[:1]], think_in_prompt=True) == [1.0]
    assert r1_format_reward(["<think>" + rest]) == [1.0]


def in_tags(answer, thought="x"):
    return f"<think>\n{thought}\n</think>\n<answer>\n{answer}\n</answer>"


def test_code_format_reward():
    texts = [
        in_tags("```python\nprint(1)\n```"),
        in_tags("So:\n```python\nx = 1\n\nx\n``` done", thought="```python\n1\n```"),
        in_tags("```javascript\n1\n```"),
        in_tags("```python\n1"),
        in_tags("none", thought="```python\n1\n```"),
        "```python\n1\n```",
        "<think>x</think><answer>```python\n1\n```</answer>",
    ]
    reward = get_code_format_reward(language="python")
    assert reward.__name__ == "code_format_reward"
    assert reward([as_messages(text) for text in texts], solution=[1] * 7) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert get_code_format_reward("javascript")(texts) == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    # A column says the language row by row.
    assert reward(texts[:3], language=["python", "cpp", "javascript"]) == [1.0, 0.0, 1.0]


def test_code_format_reward_equals_its_pattern_on_all_short_texts():
    pattern = re.compile(r"^<think>\n.*?\n</think>\n<answer>\n.*?```py.*?```.*?\n</answer>$", re.DOTALL | re.MULTILINE)
    pieces = ["<think>\n", "\n</think>\n<answer>\n", "\n</answer>", "\n", "```py", "```"]
    texts = ["".join(parts) for n in range(7) for parts in itertools.product(pieces, repeat=n)]
    expected = [1.0 if pattern.match(text) else 0.0 for text in texts]
    assert 0 < sum(expected) < len(texts)
    assert get_code_format_reward("py")(texts) == expected


def test_long_hostile_texts_are_read_in_linear_time():
    """A megabyte of half-open structure would take a backtracking pattern hours."""
    texts = [
        "<think>\n" + "\n</think>\n<answer>\n" * 50_000,
        "<think>" * 150_000,
        GOOD * 20_000,
    ]
    assert format_reward(texts) == [0.0, 0.0, 1.0]
    assert tag_count_reward(texts)[1] == 0.0
    assert r1_format_reward(texts) == [0.0, 0.0, 0.0]
