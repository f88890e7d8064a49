"""From rows to prompts and solutions: columns, extractors, templates, splits, and what is said of a bad row."""

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.core.sections import unpack
from r1jax.data.sources import SourceRow
from r1jax.data.tasks import Example, RowError, TaskConfig, extract_gsm8k, load_task, make_builder
from r1jax.text.prompts import R1_ZERO

EXAMPLE = Example(question="What is 3 + 4?", reasoning="3 + 4 = 7", answer="7")
GSM8K = {"source": "jsonl", "columns": {"prompt": "question", "solution": "answer"}, "extractor": "gsm8k"}


def write(path: pathlib.Path, rows: list[Any]) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_gsm8k_rows(count: int, start: int = 0) -> list[dict[str, str]]:
    numbers = range(start, start + count)
    return [{"question": f"How many are {n} sheep?", "answer": f"One by one.\n#### {n},000"} for n in numbers]


def build(columns: dict[str, Any], /, **config: Any) -> dict[str, Any]:
    return make_builder(TaskConfig(**{"source": "jsonl"} | config))(SourceRow("x:1", columns))


# --- Procedural tasks ---


def test_addition_with_the_r1_template():
    task = load_task(TaskConfig("addition", template="r1", eval_problems=200, args={"low": 10, "high": 99}))
    assert len(task.held_out) == 200 and len(task.train) == 4095 - 200 and not task.notes
    row = task.train[0]
    assert row["question"] == f"What is {row['a']} + {row['b']}?" and row["solution"] == str(row["a"] + row["b"])
    assert row["prompt"] == R1_ZERO.replace("{question}", row["question"])


def test_reasoning_gym_by_name():
    config = TaskConfig("reasoning_gym:chain_sum", problems=30, eval_problems=10, args={"max_terms": 3})
    task = load_task(config)
    assert len(task.held_out) == 10 and 20 < len(task.train) <= 30
    assert task.train[0]["prompt"] == [{"role": "user", "content": task.train[0]["question"]}]


def test_a_config_section_becomes_a_task_config():
    section = {"source": "addition", "args": {"low": 1}, "example": {"question": "q", "reasoning": "r", "answer": "a"}}
    config = unpack(TaskConfig, section, "data")
    assert config.example == Example("q", "r", "a") and config.args == {"low": 1}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"source": "adition"}, "config.data.source must be one of addition, arithmetic, reasoning_gym:TASK"),
        ({"source": "addition:1"}, "config.data.source must be one of"),
        ({"source": "reasoning_gym"}, "config.data.source must be one of"),
        ({"source": "addition", "args": {"lo": 1}}, "config.data.args of addition are low, high"),
        ({"source": "addition", "args": {"low": "1"}}, "got low='1'"),
        (
            {"source": "addition", "template": "r2"},
            "config.data.template must be one of chat, r1, question_reply, plain",
        ),
        ({"source": "addition", "template": "{question}{question}"}, "exactly once"),
        ({"source": "addition", "template": "chat", "example": EXAMPLE}, "config.data.example goes with a raw"),
        ({"source": "addition", "extractor": "gsm9k"}, "config.data.extractor must be one of gsm8k"),
        ({"source": "addition", "eval_problems": -1}, "config.data.eval_problems must not be negative"),
        ({"source": "jsonl"}, "config.data.path must name a file when config.data.source is jsonl"),
        ({"source": "jsonl", "path": "none.jsonl"}, "no such file: none.jsonl (config.data.path)"),
    ],
)
def test_wrong_configs(config: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        load_task(TaskConfig(**config))
    assert message in str(caught.value) and "\n" not in str(caught.value)


# --- JSONL ---


def test_gsm8k_format(tmp_path: pathlib.Path):
    path = write(tmp_path / "train.jsonl", make_gsm8k_rows(20))
    task = load_task(TaskConfig(path=path, eval_problems=5, template="plain", **GSM8K))
    assert len(task.train) == 15 and len(task.held_out) == 5
    by_prompt = {row["prompt"]: row for row in task.train + task.held_out}
    row = by_prompt["How many are 7 sheep?"]
    assert row["solution"] == "7000" and row["answer"].endswith("#### 7,000") and len(by_prompt) == 20


def test_the_split_is_a_function_of_the_seed(tmp_path: pathlib.Path):
    path = write(tmp_path / "train.jsonl", make_gsm8k_rows(50))
    tasks = [load_task(TaskConfig(path=path, eval_problems=10, seed=seed, **GSM8K)) for seed in (0, 0, 1)]
    assert tasks[0] == tasks[1] and tasks[0].held_out != tasks[2].held_out


def test_a_held_out_file(tmp_path: pathlib.Path):
    path = write(tmp_path / "train.jsonl", make_gsm8k_rows(20))
    eval_path = write(tmp_path / "test.jsonl", make_gsm8k_rows(10, start=18))
    task = load_task(TaskConfig(path=path, eval_path=eval_path, eval_problems=100, **GSM8K))
    assert len(task.train) == 20 and len(task.held_out) == 10
    assert task.notes == ("2 training rows have a prompt that is also held out",)
    assert len(load_task(TaskConfig(path=path, eval_path=eval_path, eval_problems=3, **GSM8K)).held_out) == 3
    with pytest.raises(UserError, match=r"no such file: none\.jsonl \(config\.data\.eval_path\)"):
        load_task(TaskConfig(path=path, eval_path="none.jsonl", **GSM8K))


def test_duplicates_of_held_out_rows_are_not_trained_on(tmp_path: pathlib.Path):
    path = write(tmp_path / "train.jsonl", make_gsm8k_rows(10) * 2)
    task = load_task(TaskConfig(path=path, eval_problems=4, **GSM8K))
    shared = {str(row["prompt"]) for row in task.train} & {str(row["prompt"]) for row in task.held_out}
    assert not shared and len(task.train) < 16 and "repeat a held-out prompt" in task.notes[0]


def test_too_few_rows(tmp_path: pathlib.Path):
    path = write(tmp_path / "train.jsonl", make_gsm8k_rows(5))
    with pytest.raises(UserError, match=r"config\.data\.eval_problems=5 leaves none of the 5 usable rows"):
        load_task(TaskConfig(path=path, eval_problems=5, **GSM8K))
    with pytest.raises(UserError, match="no usable row"):
        load_task(TaskConfig(path=write(tmp_path / "empty.jsonl", []), eval_path=path, **GSM8K))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"question": \n', "not a JSON object"),
        ({"question": "q"}, 'no column "answer" for solution (config.data.columns); it has question'),
        ({"question": "q", "answer": "no mark"}, 'no "####" before the answer'),
        ({"question": "", "answer": "#### 1"}, "the prompt must be a text or a list"),
        ({"question": 3, "answer": "#### 1"}, "the prompt must be a text or a list"),
    ],
)
def test_a_bad_row_is_named_or_skipped(tmp_path: pathlib.Path, bad: Any, message: str):
    path = write(tmp_path / "train.jsonl", [*make_gsm8k_rows(3), bad, *make_gsm8k_rows(3, start=3)])
    with pytest.raises(UserError) as caught:
        load_task(TaskConfig(path=path, eval_problems=2, **GSM8K))
    assert f"{path}:4: " in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)
    assert "config.data.on_error=skip" in str(caught.value)
    task = load_task(TaskConfig(path=path, eval_problems=2, on_error="skip", **GSM8K))
    assert len(task.train) == 4 and len(task.held_out) == 2
    assert task.notes[0].startswith("1 malformed rows left out, the first: ") and "train.jsonl:4" in task.notes[0]


# --- One row ---


def test_columns_are_mapped_and_all_are_kept():
    columns = {"problem": "1 + 1?", "Answer": 2.0, "level": 3}
    row = build(columns, columns={"prompt": "problem", "solution": "Answer"}, template="plain")
    assert row == {**columns, "prompt": "1 + 1?", "solution": "2", "question": "1 + 1?"}


def test_names_of_ours_need_no_map():
    row = build({"prompt": "1 + 1?", "solution": "2", "verification_info": {"x": 1}})
    assert row["prompt"] == [{"role": "user", "content": "1 + 1?"}]
    assert row["question"] == "1 + 1?" and row["verification_info"] == {"x": 1}
    assert "solution" not in build({"prompt": "no gold here"})


def test_messages_stay_messages():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert build({"prompt": messages})["prompt"] == messages
    with pytest.raises(RowError, match=r"messages need config\.data\.template=chat"):
        build({"prompt": messages}, template="r1")
    with pytest.raises(RowError, match="role and content"):
        build({"prompt": [{"role": "user"}]})


@pytest.mark.parametrize(
    ("solution", "text"), [("7", "7"), (7, "7"), (145.0, "145"), (0.5, "0.5"), (["a", "b"], ["a", "b"])]
)
def test_numbers_become_text(solution: Any, text: Any):
    assert build({"prompt": "q", "solution": solution})["solution"] == text


def test_a_missing_answer_is_an_error():
    with pytest.raises(RowError, match="the solution is null"):
        build({"prompt": "q", "solution": None})


@pytest.mark.parametrize(
    ("solution", "answer"), [("a #### b\n#### 1,234 ", "1234"), ("####-5", "-5"), ("x\n#### 0.5\n", "0.5")]
)
def test_gsm8k_answers(solution: str, answer: str):
    assert extract_gsm8k(solution) == answer


# --- Templates ---


def test_r1_shows_the_example_as_an_earlier_turn():
    prompt = build({"prompt": "What is 1 + {x}?"}, template="r1", example=EXAMPLE)["prompt"]
    assert prompt.count("A conversation between User and Assistant") == 1
    assert prompt.endswith(
        "User: What is 3 + 4? Assistant: <think> 3 + 4 = 7 </think> <answer> 7 </answer>\n"
        "User: What is 1 + {x}? Assistant:"
    )


def test_an_example_of_another_task_is_not_shown():
    example = Example("q", "r", "a", source="addition")
    own = dataclasses.replace(example, source="file")
    asked = dict(source="file", template="plain")
    prompts = [build({"prompt": "Why?"}, example=shown, **asked)["prompt"] for shown in (example, own)]
    assert prompts[0] == "Why?" and prompts[1].endswith("Why?") and prompts[1] != "Why?"


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"source": "addition"}, "addition"),
        ({"source": "reasoning_gym:countdown"}, "countdown"),
        ({"source": "file", "path": "data/reversals.jsonl"}, "reversals"),
    ],
)
def test_a_task_has_a_name(config: dict[str, Any], name: str):
    assert TaskConfig(**config).name == name


def test_question_reply_with_an_example():
    prompt = build({"prompt": "What is 1 + 1?"}, template="question_reply", example=EXAMPLE)["prompt"]
    assert prompt == (
        "Question: What is 3 + 4?\nReply: <think> 3 + 4 = 7 </think> <answer> 7 </answer>\n\n"
        "Question: What is 1 + 1?\nReply:"
    )


def test_a_template_may_be_spelt_out():
    assert build({"prompt": "1 + 1"}, template="{question} = {ten}")["prompt"] == "1 + 1 = {ten}"
