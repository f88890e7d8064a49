r"""Rewards and scores on 2,500 cases with a verdict beyond dispute: at most 2% of wrong answers paid, 5% of right ones
refused. What open-r1's settings of math-verify refuse, `accuracy_reward` refuses: those cases are listed here.
"""

import pytest

from tests.rewards.case_scores import Case, measure, read_cases

# Answers in boxes: math-verify, set as open-r1 sets it, does not read them.
FORCED = frozenset(
    {
        *("‑5", "١٢", "\u200b12", "¾", "5 €"),  # other scripts and signs
        *(r"12 \operatorname{cm}", r"12\,{\rm cm}", r"14 + 7\mathrm{i}"),
        *(r"\sqrt2", r"1\pm\sqrt5", r"\left(3,\frac\pi2\right)", r"\varnothing"),  # without braces (`nits` off)
        *("D", r"\text{D}"),  # a letter as gold is not read
    }
)
FORCED_TEXTS = (r"\boxed{\text{The answer is } 7}", r"$\boxed{50}\%$", r"$\boxed{15}\%$")


def in_box(case: Case) -> str:
    return case["completion"].partition(r"\boxed{")[2].rpartition("}")[0]


@pytest.fixture(scope="module")
def tallies():
    return measure(read_cases())


@pytest.mark.parametrize(
    "function",
    [
        *("answer_reward", "accuracy_reward", "number_reward", "cosine_scaled_reward>0"),
        *("eval.strict", "eval.lenient", "eval.cons@k"),
    ],
)
def test_wrong_answers_are_not_paid_and_right_ones_not_refused(tallies, function):
    tally = tallies[function]
    refused = tally.refused
    if function == "accuracy_reward":
        refused = [case for case in refused if in_box(case) not in FORCED and case["completion"] not in FORCED_TEXTS]
    assert len(tally.paid) <= 0.02 * tally.wrong, tally.paid
    assert len(refused) <= 0.05 * tally.right, refused


def test_there_are_cases_of_each_class_right_and_wrong():
    cases = read_cases()
    assert len(cases) > 2400 and len({case["klass"] for case in cases}) > 70
    assert 0.4 < sum(case["expected"] for case in cases) / len(cases) < 0.6
