r"""Letters of choices: one letter in any markup, none where there are several."""

import pytest

from r1jax.rewards.reader.choices import find_choice, find_last_letter, read_choice, read_gold_choice


@pytest.mark.parametrize(
    "answer",
    ["C", "c", "(C)", "C.", "C)", "[C]", "**C**", r"\text{C}", r"\textbf{(C)}", r"\mathrm{C}", "Option C", "choice (C)"]
    + ["Answer: C", "The answer is (C).", "C. 12 eV", "(C) 12 eV", "C: twelve", "C 12", "C is correct", "Ｃ"],
)
def test_one_letter(answer):
    assert read_choice(answer) == "C"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "C or D",
        "C and B",
        "C, D",
        "C/D",
        "CD",
        "not C",
        "Cat",
        "Cannot be said",
        "C++",
        "C. D",
        "c or d",
        "a man",
        "12",
    ]
    + ["I", "C" * 1000],
)
def test_none_or_several(answer):
    assert read_choice(answer) is None


@pytest.mark.parametrize(
    ("gold", "letter"),
    [("C", "C"), ("(C)", "C"), ("C.", "C"), ("C. 12", "C"), ("(C) a bird", "C"), (r"\text{C}", "C"), ("I", None)]
    + [("Cat", None), ("12", None), ("c", None), ("x^2", None)],
)
def test_golds(gold, letter):
    assert read_gold_choice(gold) == letter


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Answer: C", (True, "C")),
        ("Answer:\nC", (True, "C")),
        ("**Answer: C**", (True, "C")),
        ("First \\boxed{12 eV}.\nAnswer: C", (True, "C")),
        ("Answer: A\nso \\boxed{\\text{B}}", (True, "B")),
        ("\\boxed{C}, so\nAnswer: D", (True, "D")),
        ("Answer: C or D", (True, None)),
        ("Answer: B\n\nVitamin C helps.", (True, "B")),
        ("<think>Answer: C</think> Hm.", (False, None)),
        ("It is clear.", (False, None)),
    ],
)
def test_the_last_place_that_names_a_letter(text, found):
    assert find_choice(text) == found


def test_the_last_letter_anywhere():
    assert find_last_letter("A bird. I would say C") == "C"
    assert find_last_letter("<think>C</think> none") is None
