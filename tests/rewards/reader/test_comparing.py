r"""Answers compared with golds: by which rule, and what is left to algebra."""

import pytest

from r1jax.rewards.reader.comparing import compare_answer


@pytest.mark.parametrize(
    ("answer", "gold", "same", "rule"),
    [
        (r"12\text{ cm}^2", "12", True, "number 12 with unit cm^2"),
        ("5 miles", "5 km", False, "number 5 with unit mile for unit km"),
        ("5", "5 km", True, "number 5"),
        ("100%", "1", True, "number 100%"),
        ("100%", "100", False, "number 100%"),
        ("50", "50%", True, "number 50"),
        ("7 or 8", "8", False, "list of 2 for a number"),
        ("2x = 7", "7", False, "an equation for a number"),
        ("5x", "5", False, "an expression with variables for a number"),
        (r"\sqrt{49}", "7", None, r"expression \sqrt{49} by algebra"),
        (r"n = \sqrt{49}", "7", None, "the value of a symbol, by algebra"),
        ("silent", "listen", False, "text silent, by spelling"),
        ("4343_7", "4343_6", False, "base 4343_7, by spelling"),
        ("C. 12", "C", True, "choice C"),
        ("C or D", "C", False, "no single choice"),
        ("", "7", False, "no answer"),
        ("2", "(1,2)", False, "number 2 for tuple of 2"),
        ("(1, 2)", "(1,2)", True, "tuple of 2, spelled alike"),
        ("(2,1)", "(1,2)", None, "tuple of 2 by algebra"),
        ("25", "x^2+y^2=25", False, "number 25 for equation x^2+y^2=25"),
        ("2x+3", "y = 2x+3", None, "expression 2x+3 by algebra"),
        ("x = 3", "x > 3", False, "number 3 for inequality x > 3"),
        (r"1+\sqrt{5}, 1-\sqrt{5}", r"1 \pm \sqrt{5}", None, "list of 2 by algebra"),
        ("1", r"1 \pm \sqrt{5}", False, "number 1 for list of 2"),
        ("x+" * 400 + "1", "x+1", False, "too long to calculate"),
    ],
)
def test_verdicts_and_rules(answer, gold, same, rule):
    verdict = compare_answer(answer, gold)
    assert (verdict.same, verdict.rule) == (same, rule)
