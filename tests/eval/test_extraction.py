"""Answers found in completions, and answers compared by value."""

import pytest

from r1jax.eval.extraction import Kind, compare, find_kind, find_strict, is_lenient, read_gold


@pytest.mark.parametrize(
    ("gold", "kind"),
    [("18", "number"), ("1,234.5", "number"), ("\\frac{1}{2}", "number"), ("033", "number"), ("50%", "number")]
    + [("B", "choice"), ("(D)", "choice"), ("C.", "choice")]
    + [("x^2+1", "expression"), ("\\sqrt{2}", "expression"), ("Paris", "expression"), ("I", "expression")],
)
def test_what_a_gold_answer_is(gold: str, kind: Kind):
    assert find_kind(gold) == kind


def test_the_gold_answer_of_a_worked_solution():
    assert read_gold("2 + 2 = 4, so there are\n#### 4") == "4"
    assert read_gold("Thus $\\boxed{x+1}$.") == "x+1"
    assert read_gold(" 4 ") == "4"


@pytest.mark.parametrize(
    ("text", "kind", "answer"),
    [
        ("so \\boxed{3} or rather \\boxed{\\frac{1}{2}}.", "number", "\\frac{1}{2}"),
        ("<think>\\boxed{1}</think><answer> 7 </answer>", "number", "7"),
        ("3 + 4 = 7\n#### 7\nDone", "number", "7"),
        ("It is 7.", "number", None),
        ("\\boxed{}", "number", None),
        ("", "number", None),
        ("A) is wrong.\nAnswer: B\n\n**Answer:** C", "choice", "C"),
        ("answer: $\\text{(D)}$", "choice", "D"),
        ("Answer: Because of that", "choice", None),
        ("Answer: A\nso \\boxed{\\text{B}}", "choice", "B"),
        ("<answer>(C) 12 metres</answer>", "choice", "C"),
        ("\\boxed{12}", "choice", None),
        ("I choose D", "choice", None),
    ],
)
def test_the_answer_in_the_place_asked_for(text: str, kind: Kind, answer: str | None):
    assert find_strict(text, kind) == answer


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("first 3, then 18 dollars", "18", True),
        ("\\boxed{18} of 20", "18", False),
        ("no number", "18", False),
        ("A bird. I would say C", "C", True),
        ("(B) and not A", "A", True),
        ("B. A bird flies", "B", True),
        ("Nothing at all", "B", False),
    ],
)
def test_the_last_number_or_letter_is_lenient(text: str, gold: str, right: bool):
    assert is_lenient(text, gold, find_kind(gold), strict=False) is right


def test_an_expression_is_lenient_where_it_is_strict():
    assert is_lenient("x", "\\sqrt{2}", "expression", strict=True)
    assert not is_lenient("\\sqrt{2}", "\\sqrt{2}", "expression", strict=False)


def test_equal_by_value():
    pairs: list[tuple[str, str, Kind, bool]] = [
        ("0.5", "\\frac12", "number", True),
        ("$18 per day for each", "18", "number", True),
        ("1,000", "1000.0", "number", True),
        ("18", "81", "number", False),
        ("2^3", "8", "number", True),
        ("2^3", "3", "number", False),
        ("x+1", "1 + x", "expression", True),
        ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}", "expression", True),
        ("x+1", "x+2", "expression", False),
        ("(1, 2)", "\\left( 1, 2 \\right)", "expression", True),
        ("", "x", "expression", False),
        ("B", "(B)", "choice", True),
        ("B", "C", "choice", False),
    ]
    assert compare([pair[:3] for pair in pairs]) == [pair[3] for pair in pairs]
