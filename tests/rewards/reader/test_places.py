r"""Places of answers: the thought is none, what stands around a box counts, several boxes are one answer."""

import pytest

from r1jax.rewards.reader.places import find_line, find_marked, find_place, find_statement
from r1jax.text.reasoning import after_thought


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>7</think> 8", " 8"),
        ("7</think> 8", " 8"),
        ("<think>a</think>b</think> 8", " 8"),
        ("no thought", "no thought"),
        (r"Well: <think>so \boxed{7}", "Well: "),
        ("<think>so <answer>7</answer>", "<answer>7</answer>"),
    ],
)
def test_the_thought_is_cut_off(text, rest):
    assert after_thought(text) == rest


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"$-\boxed{7}$", "-7"),
        (r"$x = -\boxed{7}$", "-7"),
        ("So:\n- \\boxed{7}", "7"),  # an item of a list
        (r"\boxed{7} million", "7 million"),
        (r"\boxed{7}\pi", r"7\pi"),
        (r"$\boxed{7}$ cm", "7 cm"),
        (r"\boxed{7} apples are left", "7 apples"),
        (r"\boxed{7} in all", "7"),
        (r"$\boxed{7}\%$", r"7 \%"),
        (r"\boxed{7} or \boxed{8}", "7, 8"),
        (r"\boxed{7}, \boxed{8} and \boxed{9}", "7, 8, 9"),
        (r"\boxed{7} or, rounded, \boxed{7.0}", "7.0"),
        (r"$x=\boxed{7}$, or $\boxed{7}$", "7"),
        (r"first \boxed{6}, but that was wrong. Now \boxed{7}", "7"),
        (r"not \boxed{7}", None),
        ("7 more than not\n\\boxed{7}", "7"),
        (r"It isn't \boxed{7}.", None),
        (r"\boxed{7} is wrong.", None),
        (r"\boxed{7} or 8", None),
        (r"\boxed{7} Wait. The answer is 8.", None),
        (r"\boxed{7} So the answer is 7.", "7"),
        (r"<answer>7 \boxed{8}</answer>", None),
        (r"<answer>7 + 1 = \boxed{8}</answer>", "8"),
        (r"<answer></answer> \boxed{8}", "8"),
        (r"<think>\boxed{7}</think> done", None),
        (" ".join(rf"\boxed{{{n}}}" for n in range(30)), None),
        (r"\boxed 7", "7"),
    ],
)
def test_what_stands_around_a_box_counts(text, answer):
    place = find_place(text)
    assert (place and place.text) == answer


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The answer is 7.", "7"),
        ("The final answer is $7$ or $8$. Yes.", "$7$ or $8$"),
        ("Answer: 3.5\nmore", "3.5"),
        ("**Answer:** 15", "15"),
        ("the answer, as we saw, is 9", "9"),
        ("The answer is 8. No: the answer is 9.", "9"),
        ("I have no answer; but x = 7", None),
    ],
)
def test_statements(text, said):
    assert find_statement(text) == said


def test_lines_of_gsm8k_and_headings():
    assert find_marked("3 + 4\n#### 7\nDone") == "7"
    assert find_marked("#### 8\n#### 7") == "7"
    assert find_marked("#### Step 1\nWe add.") is None
    assert find_marked("#### The answer is 7") == "The answer is 7"
    assert find_line("#### Step 1\nSo the answer is **7**.") == ("7", "asked-for line")
    assert find_line("nothing") is None
