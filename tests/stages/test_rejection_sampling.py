"""What a trace becomes before it is learnt; the rest of the stage runs in test_collection.py, test_pipeline.py and
test_distill.py."""

import pytest

from r1jax.core.errors import UserError
from r1jax.data.filters import Trace
from r1jax.stages import set_rows
from r1jax.stages.registry import resolve_run

FORM = "<think>\n{reasoning}\n</think>\n{answer}"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("<think> 1 + 1\n  = 2 </think>\n\n<answer>2 </answer>", "<think>\n1 + 1 = 2\n</think>\n2"),
        ("<think> {answer} </think><answer> {reasoning} </answer>", "<think>\n{answer}\n</think>\n{reasoning}"),
        ("<think> no end <answer> 2 </answer>", "<think> no end <answer> 2 </answer>"),
        ("2", "2"),
    ],
)
def test_a_tagged_sample_takes_the_form_asked_for(said: str, kept: str):
    trace = Trace(0, "What is 1 + 1?", said, 1.0, 8)
    assert set_rows.rewrite(trace, FORM).completion == kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reply": "{answer}"}, "config.reply must contain"),
        ({"generate": {"slots": 0}}, "config.generate.prompts must be at least 0 and config.generate.slots"),
        ({"rewards": None}, "config.rewards must be"),
    ],
)
def test_a_mistake_gets_one_line(change: dict, message: str):
    config = {
        "stage": "rejection_sampling",
        "model": {"name": "x"},
        "data": {"source": "addition"},
        "rewards": {"answer_reward": 1.0},
    }
    with pytest.raises(UserError, match=message):
        resolve_run({**config, **change})
