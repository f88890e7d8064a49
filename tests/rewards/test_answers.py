r"""Rewards for answers: open-r1's behaviour of `accuracy_reward`, and what counts as the same value elsewhere."""

import pytest

from r1jax.rewards.answers import accuracy_reward, answer_reward, find_answer, find_boxed, number_reward, same_answer
from r1jax.rewards.base import explain_values, load_rewards, score


def as_messages(text):
    return [{"role": "assistant", "content": text}]


ACCURACY_CASES = [
    # From open-r1's tests.
    (r"\boxed{\frac{63}{400}}", r"\frac{63}{400}", 1.0),
    (r"\boxed{\frac{64}{400}}", r"\frac{63}{400}", 0.0),
    (r"\boxed{3}", "6", 0.0),
    # A box in running text; the equal value in another form.
    (r"We add. <answer> \boxed{7} </answer>", "7", 1.0),
    (r"\boxed{0.5}", r"$\frac{1}{2}$", 1.0),
    (r"\boxed{x^2+2x+1}", "$(x+1)^2$", 1.0),
    (r"\boxed{\{1,2\}}", r"$\{2,1\}$", 1.0),
    # LaTeX after an anchor counts, without one it does not; a bare number never does.
    ("The final answer is $7$.", "7", 1.0),
    ("I think $7$", "7", 0.0),
    ("The final answer is 7", "7", 0.0),
    ("<answer>7</answer>", "7", 0.0),
    # Several boxes are one answer of several parts, so guessing all of them does not pay.
    (r"\boxed{3} or $\boxed{4}$", "4", 0.0),  # open-r1 pays it, as the two are not seen together
    (r"$\boxed{3}$ or $\boxed{4}$", "4", 0.0),
    ("", "7", 0.0),
    # A gold that cannot be read gives no reward at all, whatever the answer.
    (r"\boxed{answer}", "unparseable_latex", None),
    (r"\boxed{7}", "", None),
    (r"\boxed{7}", "  ", None),
    (r"\boxed{7}", None, None),
    # The gold is taken by open-r1's wider rules: plain numbers and expressions, and numbers of a column.
    (r"\boxed{7}", "The answer is 7", 1.0),
    (r"\boxed{7}", 7, 1.0),
    (r"\boxed{3.5}", 3.5, 1.0),
    # Gold first: an assignment in the answer is unwrapped, and one in the gold is, too.
    (r"\boxed{x=7}", "7", 1.0),
    (r"\boxed{7}", "$x=7$", 1.0),
]


def test_accuracy_reward():
    texts, solutions, values = zip(*ACCURACY_CASES, strict=True)
    found = accuracy_reward(list(texts), list(solutions))
    assert dict(zip(zip(texts, solutions, strict=True), found, strict=True)) == {
        (text, solution): value for text, solution, value in ACCURACY_CASES
    }
    assert accuracy_reward([as_messages(text) for text in texts], solution=list(solutions), level=[1]) == found


def test_accuracy_reward_equals_math_verify_called_as_open_r1_does():
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    config = LatexExtractionConfig(
        normalization_config=NormalizationConfig(
            nits=False, malformed_operators=False, basic_latex=True, equations=True, boxed="all", units=True
        ),
        boxed_match_priority=0,
        try_extract_without_anchor=False,
    )
    golds = ["12", "$x=3$", r"$1<x<2$", r"$(1,2)\cup(3,4)$", "50%", r"$\sqrt{2}/2$", "12 cm", "1,234", "A", r"$\pi$"]
    answers = ["12", "x=3", "3", "(1,2)", r"(3,4)\cup(1,2)", r"50\%", "0.5", r"\frac{1}{\sqrt2}", "0.7071068", "1234"]
    pairs = [(gold, rf"So \boxed{{{answer}}}.") for gold in golds for answer in answers]
    expected = []
    for gold, answer in pairs:
        parsed = parse(gold, extraction_mode="first_match")
        answer_parsed = parse(answer, extraction_config=[config], extraction_mode="first_match")
        expected.append(float(verify(parsed, answer_parsed)) if parsed else None)
    assert {0.0, 1.0} <= set(expected)
    assert accuracy_reward([answer for _, answer in pairs], [gold for gold, _ in pairs]) == expected


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think> 3 + 4 </think> <answer> 7 </answer>", "7"),
        ("<answer>6</answer> no, <answer>7</answer>", "7"),
        ("<answer>7</answer> <answer>8", "7"),
        ("<answer> <answer>7</answer></answer>", "7"),
        ("7</answer> <answer>", None),
        ("<answer>7", None),
        (r"\boxed{6} <answer>7</answer>", "7"),
        (r"<answer>7</answer> \boxed{6}", "7"),
        (r"<answer>it is \boxed{7}</answer>", "7"),
        (r"<answer>$\boxed{\boxed{7}}$</answer>", "7"),
        (r"\boxed{6} and \boxed{7}", "6, 7"),
        (r"\boxed{7} and \boxed{\frac{1}{2", "7"),
        ("<answer></answer>", ""),
        ("seven", None),
        ("", None),
    ],
)
def test_find_answer(text, answer):
    assert find_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        (r"}} { \boxed{7} }", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right."),
        (r"\boxed{1}\boxed{2}", "2"),
        (r"\boxed{}", ""),
        (r"\boxed{", None),
        (r"\boxed 7", None),
    ],
)
def test_find_boxed(text, content):
    assert find_boxed(text) == content


@pytest.mark.parametrize(
    ("answer", "solution", "same"),
    [
        ("7", "7.0", True),
        ("$1,234", "1234", True),
        ("0.5", "1/2", True),
        (r"\frac{1}{2}", "0.50", True),
        ("0.3333", "1/3", False),
        ("−3", "-3", True),
        ("3", "-3", False),
        ("50%", "0.5", True),
        ("72 clips", "72", True),
        ("70 or 72", "72", False),
        ("(B)", "B", True),
        ("b", "(B)", True),
        ("B)", "B", True),
        (r"\text{East}", "east", True),
        ("True", "true", True),
        (r"\left( 1, 2 \right)", "(1,2)", True),
        (r"\dfrac{a}{b}", r"\frac{a}{b}", True),
        ("x", "y", False),
        ("", "", False),
        ("", "7", False),
        ("1" * 2000, "1" * 2000, True),
        ("1" * 2000, "1" * 2001, False),
    ],
)
def test_same_answer(answer, solution, same):
    assert same_answer(answer, solution) is same


def test_answer_reward():
    texts = ["<answer> 7 </answer>", r"so \boxed{7}", "7", "<answer>8</answer>", "<answer></answer>"]
    assert answer_reward(texts, ["7"] * 5, level=["x"] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert answer_reward([as_messages(text) for text in texts], solution=[7] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert answer_reward([texts[0]] * 4, [r"thus \boxed{7}", "<answer>7</answer>", "", None]) == [1.0, 1.0, None, None]


def test_number_reward():
    texts = ["3 + 4 = 7", "It is 7.", "7 or 8", "seven", ""]
    assert number_reward(texts, ["7"] * 5, level=["x"] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert number_reward([as_messages(text) for text in texts], solution=[7.0] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert number_reward(["7"] * 4, ["3 + 4 is 7 #### 7", "none", "", None]) == [1.0, None, None, None]


@pytest.mark.parametrize(
    "text",
    [
        "<answer>" * 120_000 + "</answer>",
        "<answer>" + "7" * 10**6 + "</answer>",
        r"\boxed{" * 140_000,
        r"\boxed{" * 70_000 + "}" * 70_000,
        r"\boxed{" + "{" * 200_000 + "}" * 200_000 + "}",
        r"\boxed{" + "(" * 900_000 + "}",
        "".join(map(chr, range(32, 10_000))) * 100,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_megabytes_do_not_hang(text):
    assert answer_reward([text], ["7"]) == [0.0]
    assert answer_reward([r"\boxed{7}"], [text]) == [0.0]
    assert number_reward([text], ["8"]) == [0.0]


def test_the_rules_that_decided_are_told():
    """Of each reward that applies, by its name; other rewards tell none."""
    rewards = load_rewards(
        {"answer_reward": 1.0, "number_reward": 1.0, "accuracy_reward": 1.0, "r1_format_reward": 1.0}
    )
    texts = [r"\boxed{12\text{ cm}}", "none", r"\boxed{3} or \boxed{4}", r"\boxed{7}"]
    columns = {"solution": ["12 cm", "12", "4", ""]}
    scores = score(rewards, prompts=texts, completions=texts, completion_ids=[[1]] * 4, columns=columns)
    unit, nothing, hedged, without_gold = explain_values(rewards, scores, texts, columns)
    assert unit == {
        "answer_reward": "last box: number 12 with unit cm",
        "number_reward": "the last number: number 12",
        "accuracy_reward": "math-verify decides",
    }
    assert nothing["answer_reward"] == "no answer in tags or boxes" and nothing["number_reward"] == "no number"
    assert hedged["accuracy_reward"] == hedged["answer_reward"] != "math-verify decides"
    assert without_gold == {}
