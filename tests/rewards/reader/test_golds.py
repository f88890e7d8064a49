r"""Golds: read whole or not at all, checked with a line of log, and given to math-verify as a whole."""

import json
import math
from pathlib import Path

import pytest

from r1jax.rewards.reader.golds import describe_golds, log_golds, name_kind, read_gold, write_latex

ROOT = Path(__file__).resolve().parents[3]
SHARED = next((path for path in (ROOT.parent / "shared/data", ROOT.parents[1] / "shared/data") if path.is_dir()), ROOT)


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        *(("3 * 9 = 27\n#### 27", "27"), (r"Thus $\boxed{x+1}$.", "x+1"), ("<answer>27</answer>", "27"), (" 4 ", "4")),
        *((145.0, "145"), (0.5, "0.5"), (7, "7"), (math.nan, None), (None, None), ("", None), (" ", None)),
    ],
)
def test_the_gold_of_a_solution(solution, gold):
    assert read_gold(solution) == gold


@pytest.mark.parametrize(
    ("solution", "latex"),
    [
        *(("7", "7"), ("1,234", "1,234"), ("$x=3$", "$x=3$"), (r"\boxed{7}", r"\boxed{7}"), ("50%", "50%")),
        *((r"\frac{63}{400}", r"\frac{63}{400}"), (r"2\pi", r"\boxed{2\pi}"), ("3, 5, 7", r"\boxed{3, 5, 7}")),
        *((r"\left(3,\frac\pi2\right)", r"\boxed{(3,\frac{\pi}{2})}"), (r"\$32.50", r"\boxed{\frac{65}{2}}")),
        *(
            (r"15\text{ cm}", r"\boxed{15}"),
            (r"1.5\times10^3", r"\boxed{1500}"),
            (r"12.5\%", r"\boxed{\frac{25}{2}\%}"),
        ),
        *((r"\text{Tuesday}", r"\boxed{\text{Tuesday}}"), ("unparseable_latex", "unparseable_latex"), ("A", "A")),
        *(("5 million", None), (math.nan, None), (None, None), ("", None)),
    ],
)
def test_the_whole_gold_for_math_verify(solution, latex):
    assert write_latex(solution) == latex


def test_a_line_on_golds():
    golds = ["7", "7 cm", "x^2+1", "C", r"\frac12", "Paris", "", math.nan, "1 2 3", None, " ", "?", "10"]
    assert describe_golds(golds) == (
        "7 of 13 golds are read: 4 as number, 1 as expression, 1 as choice, 1 as text; 6 are not: row 7: ''; "
        "row 8: 'nan'; row 9: '1 2 3'; row 10: 'None'; row 11: ' '"
    )
    assert describe_golds(["7"]) == "1 of 1 golds are read: 1 as number"


def test_the_log_of_a_run_has_the_line(caplog):
    caplog.set_level("INFO")
    rows = [{"solution": "7"}, {"solution": ""}]
    log_golds(rows, ["answer_reward", "format_reward"])
    assert "1 of 2 golds are read: 1 as number; 1 are not: row 2: ''" in caplog.text
    caplog.clear()
    log_golds(rows, ["format_reward"])
    log_golds([{"prompt": "?"}], ["answer_reward"])
    assert caplog.text == ""


def dress(number: str) -> list[str]:
    return [rf"\boxed{{{number}}}", rf"${number}$", f"The answer is {number}.", f"{number}.0", f"**{number}** dollars"]


@pytest.mark.parametrize(("name", "column"), [("gsm8k", "answer"), ("svamp", "Answer"), ("aime24", "answer")])
def test_data_sets(name, column):
    from r1jax.rewards.reader.comparing import same_answer
    from r1jax.rewards.reader.places import find_answer

    file = SHARED / name / "test.jsonl"
    if not file.is_file():
        pytest.skip("the data sets are not here")
    golds = [json.loads(line)[column] for line in file.read_text("utf-8").splitlines()]
    assert {name_kind(gold) for gold in golds} == {"number"}
    for solution in golds:
        gold = read_gold(solution) or ""
        for text in dress(gold):
            assert same_answer(find_answer(text) or text, gold), (text, solution)
