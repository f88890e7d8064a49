r"""Kinds of answers, read from their spelling."""

import pytest

from r1jax.rewards.reader.characters import plain_characters
from r1jax.rewards.reader.kinds import read_answer
from r1jax.rewards.reader.spelling import plain_latex, spell_latex, spell_text
from r1jax.rewards.reader.units import read_unit


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        *(("", "nothing"), ("?", "nothing"), (" ... ", "nothing")),
        *(("7", "number"), ("7 cm", "number"), ("The answer is 7.", "number"), ("50%", "number"), ("x = 7", "number")),
        *(("7 million", "text"), ("not 7", "text"), ("Paris", "text"), ("3:30", "text"), ("no", "text")),
        *((r"6\text{ or }7", "list"), ("7, 8", "list"), ("7 or 8", "list"), (r"1\pm\sqrt{2}", "list")),
        *(("(1,2)", "tuple"), ("[1,2)", "interval"), (r"(-\infty,2)\cup(3,4)", "interval"), (r"\{1,2\}", "set")),
        *((r"\emptyset", "set"), (r"\begin{pmatrix}1\\2\end{pmatrix}", "matrix"), ("x > 3", "inequality")),
        *(("y = 2x", "equation"), ("2 = 7", "equation"), (r"2\pi", "expression"), ("x^2+1", "expression")),
        *((r"\sin x", "expression"), ("4343_6", "base"), ("1 2 3", "unreadable"), ("7 +", "unreadable")),
        ("1.2.3", "unreadable"),
        ("x" * 10_000, "unreadable"),
    ],
)
def test_kinds(answer, kind):
    assert read_answer(answer).kind == kind


@pytest.mark.parametrize(
    ("phrase", "unit"),
    [
        *(
            (" cm", "cm"),
            (" centimeters", "cm"),
            (r"\text{ cm}^2", "cm^2"),
            (" square feet", "foot^2"),
            (" cm²", "cm^2"),
        ),
        *((" km/h", "h^-1 km"), (" km per hour", "h^-1 km"), (" mph", "h^-1 mile"), (r"^\circ", "degree")),
        *((" years old", "year"), (" dollars a day", "day^-1 dollar"), (" units", ""), (" square units", "")),
        *((" apples", "apple"), (" red apples", "apple"), (" eggs out of 20", "egg"), (" in total", ""), ("", "")),
        *(
            (" pi", None),
            (" times", None),
            (" million", None),
            (" halves", None),
            (" million apples", None),
            ("x", None),
        ),
        *(("m", None), (" factorial", None), (" or 8", None), (" percent of x", None), (" cm" * 100, None)),
    ],
)
def test_units(phrase, unit):
    assert read_unit(plain_characters(phrase)) == unit


def test_one_spelling():
    assert plain_characters("٤٨４８𝟒\u200b − 10¹²½") == r"48484 - 10^{12} \frac{1}{2}"
    assert spell_text(r"\text{San Marino}.") == spell_text("**san  marino**") == "sanmarino"
    assert spell_text("3:30 p.m.") == spell_text("3:30PM")
    assert plain_latex(r"\left(3,\dfrac\pi2\right)") == r"(3,\frac{\pi}{2})"
    assert plain_latex(r"\sqrt2 + 3\mathrm{i}") == r"\sqrt{2} + 3i"
    assert spell_latex(r"\Delta x") != spell_latex(r"\delta x")
    assert spell_latex("3 4") != spell_latex("34")


def test_the_reading_is_told():
    assert read_answer(r"12\text{ cm}").told == "number 12 with unit cm"
    assert read_answer("50%").told == "number 50%"
    assert read_answer("7 or 8").told == "list of 2"
    assert read_answer("x^2+1").told == "expression x^2+1"
