r"""What rewards pay for existing completions, and where they differ."""

import json

import numpy as np
import pytest

from r1jax import evaluate as command
from r1jax.core.errors import UserError
from r1jax.eval.payouts import compare_graders, pay, render_payouts, summarize

ROWS = [
    {"prompt": "3 + 4?", "solution": "7", "completions": ["<answer>7</answer>", "It is 7.", "<b>8</b>"]},
    {"problem": "5 + 5?", "gold": "10 cm", "completions": [r"\boxed{10\text{ km}}", r"\boxed{10}"]},
    {"prompt": "?", "solution": None, "completion": "<answer>1</answer>"},
]


def test_a_table_of_each_reward_and_of_each_two():
    payouts = pay(ROWS, ["answer_reward", "number_reward"])
    np.testing.assert_array_equal(payouts.values["answer_reward"], [1, 0, 0, 0, 1, np.nan])
    np.testing.assert_array_equal(payouts.values["number_reward"], [1, 1, 0, 1, 1, np.nan])
    assert summarize(payouts) == [
        {"reward": "answer_reward", "mean": "0.4000", "paid": 2, "not paid": 3, "does not apply": 1},
        {"reward": "number_reward", "mean": "0.8000", "paid": 4, "not paid": 1, "does not apply": 1},
    ]
    assert compare_graders(payouts) == [
        {
            **{"first": "answer_reward", "second": "number_reward", "only the first pays": 0},
            **{"only the second pays": 2, "values differ": 2},
        }
    ]


def test_the_page_shows_where_two_differ_and_by_which_rule():
    page = render_payouts(pay(ROWS, ["answer_reward", "number_reward"]), "Rewards of x")
    assert "2 of 2 completions for which two rewards differ" in page
    assert "row 1, completion 2" in page and "no answer in tags or boxes" in page
    assert "row 2, completion 1" in page and "number 10 with unit km for unit cm" in page
    assert "row 1, completion 1" not in page
    one = render_payouts(pay(ROWS, ["answer_reward"]), "x")
    assert "6 of 6 completions of the file" in one and "does not apply" in one
    assert "&lt;b&gt;8&lt;/b&gt;" in one and "<b>8</b>" not in one  # what a model wrote is text


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        ([{"solution": "7"}], ["answer_reward"], "row 1 must have completions"),
        ([{"completions": ["7"]}], ["answer_reward"], "solution"),
        (ROWS, ["answer"], "did you mean"),
    ],
)
def test_mistakes(rows, names, message):
    with pytest.raises(UserError, match=message):
        pay(rows, names)


def test_the_command_writes_a_page_beside_the_samples(tmp_path, capsys):
    samples = tmp_path / "out.jsonl"
    samples.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    arguments = ["evaluate", f"--samples={samples}", "--reward=answer_reward,number_reward"]
    assert command.main(arguments) == 0
    assert "number_reward" in capsys.readouterr().out
    assert "number 10 with unit km" in (tmp_path / "out.rewards.html").read_text()
    assert command.main(["evaluate", "--model=x", "--reward=answer_reward"]) == 2
