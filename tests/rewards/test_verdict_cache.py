r"""Verdicts without a worker: the same as math-verify's, for known pairs and for plain ones."""

import random

import pytest

from r1jax.rewards.verdict_cache import Verdict, Verdicts, decide_plainly
from r1jax.rewards.verifier import VerifierPool

AROUND = (
    "",
    "So ",
    "the final answer is 8. ",
    "<think>\n1/2 + 3 = 8\n</think>\n<answer>\n",
    "x = ",
    " cm",
    "%",
    "^2",
    ", 3",
    ")",
    "_",
)


def draw_number(chance):
    kind = chance.randrange(4)
    sign, top, bottom = chance.choice(("", "-")), chance.randrange(12), chance.randrange(1, 12)
    if kind == 0:
        return rf"{sign}\frac{{{top}}}{{{bottom}}}"
    if kind == 1:
        return f"{sign}{top}.{chance.choice(('0', '5', '50', '333333', '125'))}"
    return f"{sign}{chance.choice((top, top, 10**8 + top))}"


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_plain_verdicts_are_math_verifys(count):
    """A sample of each kind of gold, answer and text around it."""
    chance = random.Random(count - 300)
    pairs = []
    while len(pairs) < count:
        gold, other = draw_number(chance), draw_number(chance)
        answer = chance.choice((gold, other))
        text = chance.choice(AROUND) + rf"\boxed{{{answer}}}" + chance.choice(AROUND)
        pairs.append((chance.choice(("{}", "${}$", r"\boxed{{{}}}")).format(gold), text))
    plain = [decide_plainly(*pair) for pair in pairs]
    assert min(plain.count(True), plain.count(False)) > 50
    pool = VerifierPool(2, deadline_seconds=60.0)
    try:
        asked = pool.verify(pairs)
    finally:
        pool.close()
    differing = [
        (pair, a, b) for pair, a, b in zip(pairs, plain, asked, strict=True) if a is not None and float(a) != b
    ]
    assert differing == []


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("7", r"\boxed{7}", True),
        ("$7$", r"we get \boxed{8}.", False),
        (r"\frac{1}{2}", r"\boxed{0.5}", True),
        ("0.5", r"\boxed{\dfrac{3}{6}}", True),
        # Not plain: left to math-verify.
        ("0.333333", r"\boxed{\frac{1}{3}}", None),
        ("1000000.5", r"\boxed{1000000}", None),
        ("007", r"\boxed{7}", None),
        (r"\dfrac{1}{2}", r"\boxed{\frac{1}{2}}", None),
        ("7", "7", None),
        ("7", r"$x$ \boxed{7}", None),
        ("7", r"\boxed{7} or \boxed{8}", None),
        ("7", r"\boxed{7 }", None),
        ("7", r"\boxed{٧}", None),
        ("7", r"\boxed{\frac{7}{0}}", None),
        ("7 apples", r"\boxed{7}", None),
        ("A", r"\boxed{A}", None),
        ("1234567890", r"\boxed{1234567890}", None),
        ("", "", None),
    ],
)
def test_what_is_plain(gold, answer, verdict):
    assert decide_plainly(gold, answer) is verdict


def test_each_pair_is_judged_once_and_given_up_ones_are_asked_again():
    asked = []

    def judge(pairs, *, latex_gold):
        asked.extend((*pair, latex_gold) for pair in pairs)
        return [Verdict(0.0 if "slow" in text else 1.0, "slow" not in text) for _, text in pairs]

    verdicts = Verdicts(judge, max_verdicts=2)
    assert verdicts.verify([("g", "a"), ("g", "a"), ("7", r"\boxed{7}"), ("g", "slow")]) == [1.0, 1.0, 1.0, 0.0]
    assert asked == [("g", "a", False), ("g", "slow", False)]
    assert verdicts.verify([("g", "a"), ("g", "slow")]) == [1.0, 0.0]
    assert asked[2:] == [("g", "slow", False)]
    assert verdicts.verify([("g", "a")], latex_gold=True) == [1.0]
    assert asked[3:] == [("g", "a", True)]
    # The memory is bounded, and forgets what was not asked for longest.
    verdicts.verify([("g", "b"), ("g", "c")])
    verdicts.verify([("g", "a"), ("g", "c")])
    assert asked[4:] == [("g", "b", False), ("g", "c", False), ("g", "a", False)]
    assert verdicts.verify([]) == []
