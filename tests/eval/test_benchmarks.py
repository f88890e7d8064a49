"""Benchmarks from files as their publishers write them, and how their questions are put."""

import json
import pathlib
import sys
import types
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.eval.benchmarks import BENCHMARKS, load_benchmark
from r1jax.text.prompts import R1_ZERO

# One row of each, with the columns of the published files.
ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "How many eggs? ", "answer": "16 - 3 = <<16-3=13>>13 and more\n#### 1,318"},
    "svamp": {"Body": "There are 290 bananas in 2 groups", "Question": "How big is each?", "Answer": 145.0, "ID": "1"},
    "aime24": {"id": 60, "problem": "Find $m$.", "solution": "... $\\framebox{204}$", "answer": "204", "url": ""},
    "aime25": {"problem": "Find $b$.", "answer": 70},
    "math500": {"problem": "Convert.", "solution": "...", "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "level": 2},
    "gpqa": {
        "Question": "Which one?",
        "Correct Answer": "right",
        "Incorrect Answer 1": "wrong 1",
        "Incorrect Answer 2": "wrong 2\n",
        "Incorrect Answer 3": "wrong 3",
    },
}
GOLD = {"gsm8k": "1,318", "svamp": "145", "aime24": "204", "aime25": "70"}


def write(path: pathlib.Path, *rows: Any) -> pathlib.Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(tmp_path: pathlib.Path, name: str, **options: Any) -> Any:
    path = write(tmp_path / "file.jsonl", ROWS[name])
    found, (problem,) = load_benchmark(f"{name}={path}", **options)
    assert found == name and problem.place == f"{path}:1"
    return problem


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "gpqa"])
def test_a_question_asks_for_steps_and_a_box(tmp_path: pathlib.Path, name: str):
    problem = load(tmp_path, name)
    ((turn,), question) = problem.prompt, ROWS[name].get("question", ROWS[name].get("problem", "")).strip()
    if name == "svamp":
        question = "There are 290 bananas in 2 groups. How big is each?"
    ending = "\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert turn == {"role": "user", "content": question + ending}
    assert problem.gold == GOLD.get(name, ROWS[name]["answer"] if name == "math500" else None)


def test_multiple_choice_in_an_order_that_stays(tmp_path: pathlib.Path):
    problem = load(tmp_path, "gpqa")
    assert problem == load(tmp_path, "gpqa")
    text = problem.prompt[0]["content"]
    assert text.startswith("Answer the following multiple choice question.") and "Which one?\n\nA) " in text
    options = dict(line.split(") ") for line in text.splitlines()[-4:])
    assert list(options) == ["A", "B", "C", "D"] and options[problem.gold] == "right"
    assert sorted(options.values()) == ["right", "wrong 1", "wrong 2", "wrong 3"]


def test_a_raw_template_gets_the_bare_question(tmp_path: pathlib.Path):
    assert load(tmp_path, "aime24", template="r1").prompt == R1_ZERO.replace("{question}", "Find $m$.")
    assert load(tmp_path, "aime24", template="Q: {question}\nA:").prompt == "Q: Find $m$.\nA:"
    with pytest.raises(UserError, match="--template must be one of chat, r1"):
        load(tmp_path, "aime24", template="r2")


def test_any_file_with_prompt_and_solution(tmp_path: pathlib.Path):
    messages = [{"role": "user", "content": "1 + 1?"}]
    rows = [{"prompt": "1 + 2 =", "solution": 3.0}, {"prompt": messages, "solution": "\\boxed{2}", "id": 4}]
    path = write(tmp_path / "my set.jsonl", *rows)
    name, problems = load_benchmark(f"jsonl={path}")
    assert name == "my set"
    assert [problem[1:3] for problem in problems] == [("1 + 2 =", "3"), (messages, "2")]
    _, problems = load_benchmark(f"jsonl={path}", template="Q: {question}", limit=1)
    assert [problem[1:3] for problem in problems] == [("Q: 1 + 2 =", "3")]


def test_the_hub_is_asked_by_name_config_and_split(monkeypatch: pytest.MonkeyPatch):
    asked = []
    hub = types.ModuleType("datasets")
    hub.load_dataset = lambda *names, split: asked.append((*names, split)) or [ROWS["gsm8k"]]  # type: ignore
    monkeypatch.setitem(sys.modules, "datasets", hub)
    monkeypatch.setattr("r1jax.data.files.find_hub_files", lambda *_: None)
    _, problems = load_benchmark("gsm8k")
    assert asked == [("openai/gsm8k", "main", "test")] and problems[0].gold == "1,318"


@pytest.mark.parametrize(
    ("spec", "rows", "message"),
    [
        ("gsm9k", [], "unknown benchmark 'gsm9k'; known: gsm8k, svamp, aime24, aime25, math500, gpqa, jsonl=FILE"),
        ("gsm8k=", [], "gsm8k= needs a file name after it"),
        ("jsonl", [], "jsonl= needs a file name after it"),
        ("gsm8k=none.jsonl", [], r"no such file: none.jsonl \(--benchmarks=gsm8k\)"),
        ("gsm8k={}", [], r"file.jsonl has no problems \(--benchmarks"),
        ("gsm8k={}", [ROWS["gsm8k"], {"question": "?"}], r"file.jsonl:2: no column 'answer' \(--benchmarks"),
        ("svamp={}", [ROWS["gsm8k"]], "file.jsonl:1: no column 'Body'"),
        ("gpqa={}", [{"Question": "?"}], "file.jsonl:1: no column 'Correct Answer'"),
        ("jsonl={}", [{"prompt": "", "solution": "1"}], "file.jsonl:1: the prompt must be a text or a list of role"),
        ("jsonl={}", [{"prompt": "a", "solution": None}], "file.jsonl:1: the gold answer is empty"),
    ],
)
def test_a_mistake_is_named(tmp_path: pathlib.Path, spec: str, rows: list[Any], message: str):
    path = write(tmp_path / "file.jsonl", *rows)
    with pytest.raises(UserError, match=message):
        load_benchmark(spec.format(path))
