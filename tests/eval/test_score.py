"""Scores of a benchmark against figures computed by hand."""

import math

import pytest

from r1jax.core.errors import UserError
from r1jax.eval import extraction
from r1jax.eval.score import Answered, mean_and_stderr, pass_at_k, score

PROBLEMS = [
    # right: 1 0 1 0; lenient: 1 0 1 1; the vote: 4 (two votes)
    Answered(
        "a", "4", ["\\boxed{4}", "\\boxed{5}", "so\n#### 4", "I think 4"], [3, 3, 5, 9], ["stop"] * 3 + ["length"]
    ),
    # right: 1 0 0 1; the vote: a tie of 1/2 and 3, and 1/2 came first, once as 0.5
    Answered(
        "b", "1/2", ["\\boxed{0.5}", "\\boxed{3}", "\\boxed{3.0}", "\\boxed{\\frac{1}{2}}"], [4] * 4, ["stop"] * 4
    ),
    # right: 0 1 0 0; the vote: 8
    Answered("c", "7", ["\\boxed{8}", "<answer>7</answer>", "", "\\boxed{8}"], [1, 2, 3, 6], ["stop"] * 4),
]


def test_every_score_by_hand():
    scores, rows = score(PROBLEMS)
    assert list(scores) == [
        *("n", "k", "pass@1", "pass@1_stderr", "pass@k", "cons@k"),
        *("lenient_pass@1", "format_rate", "mean_length", "truncated"),
    ]
    assert scores == pytest.approx(
        {
            "n": 3,
            "k": 4,
            "pass@1": (2 / 4 + 2 / 4 + 1 / 4) / 3,
            "pass@1_stderr": 1 / 12,  # the deviation of 1/2, 1/2, 1/4 is 1 / (4 sqrt 3), over sqrt 3
            "pass@k": 1.0,
            "cons@k": 2 / 3,
            "lenient_pass@1": (3 / 4 + 2 / 4 + 1 / 4) / 3,
            "format_rate": 10 / 12,
            "mean_length": (20 + 16 + 12) / 12,
            "truncated": 1 / 12,
        }
    )
    assert [row["correct"] for row in rows] == [
        [True, False, True, False],
        [True, False, False, True],
        [False, True, False, False],
    ]
    assert rows[0] == {
        "problem": "a",
        "gold": "4",
        "completions": list(PROBLEMS[0].completions),
        "answers": ["4", "5", "4", None],
        "correct": [True, False, True, False],
        "lenient_correct": [True, False, True, True],
        "rules": ["number 4", "number 5", "number 4", "no answer in the requested place"],
        "lengths": [3, 3, 5, 9],
        "finish_reasons": ["stop", "stop", "stop", "length"],
    }


def test_a_smaller_k_is_unbiased_over_all_completions():
    scores, _ = score(PROBLEMS, k=2)
    assert scores["k"] == 2
    assert scores["pass@k"] == pytest.approx((5 / 6 + 5 / 6 + 1 / 2) / 3)  # 1 - C(n - c, 2) / C(4, 2)
    assert scores["cons@k"] == pytest.approx(2 / 3)
    assert scores["pass@1"] == pytest.approx(5 / 12)


def test_pass_at_k_is_the_chance_of_a_draw_without_replacement():
    for n in range(1, 9):
        for correct in range(n + 1):
            for k in range(1, n + 1):
                expected = 1 - math.comb(n - correct, k) / math.comb(n, k)
                assert pass_at_k(n, correct, k) == pytest.approx(expected, abs=1e-12)


def test_problems_with_unequal_numbers_of_completions():
    scores, _ = score([Answered(None, "1", ["\\boxed{1}"] * 3), Answered(None, "2", ["\\boxed{1}", "\\boxed{2}"])])
    assert (scores["n"], scores["k"], scores["pass@1"], scores["pass@k"]) == (2, 2, 0.75, 1.0)
    assert scores["mean_length"] is None and scores["truncated"] is None


def test_votes_of_expressions_are_joined_by_value():
    same = ["\\boxed{3}", "\\boxed{\\frac{\\sqrt{2}}{2}}", "\\boxed{\\frac{1}{\\sqrt{2}}}"]
    scores, rows = score([Answered(None, "\\frac{1}{\\sqrt{2}}", same)])
    assert rows[0]["correct"] == [False, True, True] and scores["cons@k"] == 1.0


def test_nothing_answered_is_wrong():
    scores, _ = score([Answered(None, "3", ["", "no idea"])])
    assert [scores[name] for name in ("pass@1", "pass@k", "cons@k", "format_rate")] == [0, 0, 0, 0]


def test_a_single_problem_has_no_spread():
    assert mean_and_stderr([0.25]) == (0.25, 0.0)
    assert mean_and_stderr([1.0, 0.0]) == (0.5, pytest.approx(0.5))


@pytest.mark.parametrize("problems", [[], [Answered(None, "1", [])]])
def test_nothing_to_score(problems: list[Answered]):
    with pytest.raises(UserError, match="nothing to score"):
        score(problems)


def test_more_samples_asked_for_than_there_are():
    with pytest.raises(UserError, match="num_samples is 5, but a problem has only 4 completions"):
        score(PROBLEMS, k=5)


def test_a_problem_whose_gold_cannot_be_read_is_left_out_counted_and_told(caplog: pytest.LogCaptureFixture):
    broken = Answered("d", " + ".join(["x^2"] * 400), ["\\boxed{5}", "\\boxed{6}", "7", "8"], [9] * 4, ["length"] * 4)
    scores, rows = score([*PROBLEMS, broken])
    expected, _ = score(PROBLEMS)
    assert scores == {**expected, "unread_golds": 1} and list(expected) == list(scores)[:-1]
    assert [row.get("unread_gold", False) for row in rows] == [False] * 3 + [True]
    assert "1 of 4 solutions cannot be read and are left out" in caplog.text
    with pytest.raises(UserError, match="none of the 1 solutions can be read"):
        score([broken])


def test_a_gold_that_math_verify_does_not_parse_is_not_read(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def verify(pairs: list[tuple[str, str]]) -> list[float | None]:
        asked.extend(pairs)
        return [None if "y" in gold else 1.0 for gold, _ in pairs]

    monkeypatch.setattr(extraction.verifier, "verify", verify)
    assert extraction.find_unread(["y^2+1", "x^2+1", "4", "C", "San Marino"]) == [True, False, False, False, False]
    assert asked == [("\\boxed{y^2+1}",) * 2, ("\\boxed{x^2+1}",) * 2]
