"""What a run gained: first and last evaluation, measures apart, training figures where nothing was held out."""

import pytest

from r1jax.eval.headline import find_benchmarks, find_headlines, format_value, tabulate_headlines

ROWS = [
    {"step": 0, "eval/addition/pass@1": 0.02, "eval/addition/pass@1_stderr": 0.01, "eval/addition/format_rate": 0.9},
    {"step": 5, "reward": 0.5},
    {"step": 10, "reward": 0.6, "eval/addition/pass@1": 0.4, "eval/addition/format_rate": None},
    {
        "step": 20,
        "reward": 0.7,
        "eval/addition/pass@1": 0.52,
        "eval/addition/pass@1_stderr": 0.035,
        "eval/addition/format_rate": 0.85,
    },
]


def test_first_and_last_evaluation() -> None:
    strict, form = find_headlines(ROWS)
    assert (strict.subject, strict.measure) == ("addition", "strict, sampled")
    assert (strict.before, strict.before_stderr, strict.before_step) == (0.02, 0.01, 0)
    assert (strict.after, strict.after_stderr, strict.after_step) == (0.52, 0.035, 20)
    assert (form.measure, form.before, form.after, form.after_stderr) == ("format", 0.9, 0.85, None)


def test_table_is_in_percent_and_points() -> None:
    assert tabulate_headlines(find_headlines(ROWS)) == [
        {"measure": "strict, sampled", "before": "2.0% ± 1.0", "after": "52.0% ± 3.5", "change": "+50.0 points"},
        {"measure": "format", "before": "90.0%", "after": "85.0%", "change": "−5.0 points"},
    ]


def test_rewards_of_ones_own_have_their_names_and_errors() -> None:
    rows = [
        {"step": step, "eval/a/brevity": value, "eval/a/brevity_stderr": 0.0312, "eval/a/problems": 9}
        for step, value in ((0, 0.25), (5, 0.625))
    ]
    assert tabulate_headlines(find_headlines(rows)) == [
        {"measure": "brevity", "before": "0.25 ± 0.031", "after": "0.625 ± 0.031", "change": "+0.375"}
    ]


def test_no_change_has_no_sign() -> None:
    rows = [{"step": step, "eval/a/greedy": 0.25} for step in (0, 5)]
    assert tabulate_headlines(find_headlines(rows))[0]["change"] == "±0.0 points"


def test_one_evaluation_has_no_before() -> None:
    (headline,) = find_headlines([{"step": 3, "eval/a/greedy": 0.25}])
    assert headline.before is None and headline.before_step is None
    assert tabulate_headlines([headline]) == [
        {"measure": "strict, greedy", "before": "–", "after": "25.0%", "change": "–"}
    ]


def test_benchmarks_are_named_when_there_are_several() -> None:
    rows = [{"step": 0, "eval/gsm8k/pass@1": 0.1, "eval/math/500/pass@1": 0.2, "eval/loss": 1.0}]
    assert find_benchmarks(list(rows[0])) == ["gsm8k", "math/500"]
    table = tabulate_headlines(find_headlines(rows))
    assert [row["measure"] for row in table] == ["gsm8k: strict, sampled", "math/500: strict, sampled"]


@pytest.mark.parametrize(("name", "others"), [("reward", {"loss": 0.0}), ("loss", {})])
def test_training_figures_without_evaluations(name: str, others: dict[str, float]) -> None:
    (headline,) = find_headlines([{"step": step, name: float(step), **others} for step in range(1, 41)])
    assert headline.measure == f"{name}, mean of 10 steps" and not headline.is_rate
    assert (headline.before, headline.after) == (5.5, 35.5)


def test_nothing_to_say() -> None:
    assert find_headlines([]) == find_headlines([{"step": 1, "kl": 0.1}]) == []
    assert format_value(None, None, True) == "–" and format_value(0.12345, None, False) == "0.123"
