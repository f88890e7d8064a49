"""Conversations in the report page's browser of samples: turns, calls of tools, and what was given apart."""

import json
from pathlib import Path
from typing import Any

import pytest

from r1jax.core.metrics import MetricsWriter
from r1jax.eval.report import write_report

ATTACK = "<img src=x onerror='document.documentElement.dataset.owned = 1'>"
CALL = {"type": "function", "function": {"name": "calculate", "arguments": {"expression": "320 * 169"}}}
MESSAGES = [
    {"role": "assistant", "content": "<think>I compute it.</think>", "tool_calls": [CALL]},
    {"role": "tool", "name": "calculate", "content": f"54080 {ATTACK}"},
    {"role": "user", "content": "Are you sure? " + "x" * 300},
    {"role": "assistant", "content": "<answer>54080</answer>"},
]
TEXTS = "(selector) => [...document.querySelectorAll(selector)].map((node) => node.textContent)"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    writer = MetricsWriter(run, tensorboard=False)
    writer.write(1, {"reward": 1.0, "rewards/answer_reward/mean": 1.0})
    common = {"prompt": [{"role": "user", "content": "What is 320 * 169?"}], "rewards": {"answer_reward": 1.0}}
    rows = [
        {**common, "completion": "all of it as text", "messages": MESSAGES, "reward": 1.0, "length": 20},
        {**common, "completion": "54080", "messages": [{"role": "assistant", "content": "54080"}], "reward": 0.5},
    ]
    writer.write_samples(1, rows)
    writer.close()
    (run / "config.json").write_text(json.dumps({"eval": {"strict": ["answer_reward"]}}))
    return write_report(run)


def read(tab: Any, selector: str) -> list[str]:
    return tab.run(f"({TEXTS})({selector!r})")


def test_turns_and_calls_stand_as_a_conversation(tab: Any, page: Path) -> None:
    tab.open(page)
    assert read(tab, ".conversation .role") == ["assistant", "result of calculate", "user", "assistant"]
    assert read(tab, ".conversation .sampled .call") == ['calculate(expression="320 * 169")']
    assert read(tab, ".conversation .given pre") == [message["content"] for message in MESSAGES[1:3]]
    assert read(tab, ".conversation .answer.right")[0] == "<answer>"
    facts = dict(zip(read(tab, ".detail dt"), read(tab, ".detail dd"), strict=True))
    assert (facts["turns"], facts["tool calls"]) == ("2", "1") and "messages" not in facts
    assert not tab.run("'owned' in document.documentElement.dataset") and tab.complaints() == []
    tab.run("document.querySelector('.turn button:last-child').click()")
    assert read(tab, ".conversation") == [] and read(tab, "pre.completion") == ["54080"]


@pytest.mark.parametrize("width", [390, 1280])
def test_they_do_not_scroll_sideways(tab: Any, page: Path, width: int) -> None:
    tab.open(page, width=width, phone=width < 800)
    assert tab.run("document.documentElement.scrollWidth") <= width
    fits = (
        "[...document.querySelectorAll('.conversation pre')].every((text) => text.scrollWidth <= text.clientWidth + 1)"
    )
    assert tab.run(fits)
