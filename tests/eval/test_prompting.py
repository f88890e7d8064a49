"""How a run asks: what its workdir says is what its own evaluation does, and goes with an exported folder."""

import json
import logging
import pathlib
import shutil

import pytest

from r1jax.core.errors import UserError
from r1jax.core.resolution import resolve
from r1jax.core.structs import Completion, Request, Sampling
from r1jax.data.tasks import Example, TaskConfig, load_task
from r1jax.eval.benchmarks import load_benchmark
from r1jax.eval.held_out import evaluate, make_problems
from r1jax.eval.prompting import (
    Grading,
    Prompting,
    choose_prompting,
    describe_missing,
    make_prompting,
    name_prompting,
    read_prompting,
)
from r1jax.eval.reward_grading import make_grader
from r1jax.eval.score import Answered, score
from r1jax.text.prompts import R1_ZERO
from tests.tiny_model import STOP_IDS

FORMER_RUN = pathlib.Path(__file__).parent.parent / "fixtures/workdir_format1/run"
EXAMPLE = {"question": "What is 34 + 25?", "reasoning": "34 + 25 = 59", "answer": "59", "ending": "<|im_end|>"}
TASK = {"source": "addition", "args": {"low": 10, "high": 99}, "template": "r1", "example": EXAMPLE, "eval_problems": 3}
EVAL = {"name": "sums", "strict": ("answer_reward", "r1_format_reward"), "format": "r1_format_reward"}
RUN = {
    "stage": "grpo",
    "model": {"name": "m"},
    "data": TASK,
    "rollout": {"max_new_tokens": 40, "top_k": 5},
    "eval": EVAL,
}


def test_a_question_is_put_as_the_run_puts_it() -> None:
    prompting = make_prompting(RUN, (2, 3))
    assert prompting is not None and prompting.stop_ids == (2, 3)
    assert prompting.sampling == {"temperature": 1.0, "top_k": 5, "top_p": 1.0, "min_p": 0.0, "max_new_tokens": 40}
    for row in load_task(resolve(TaskConfig, TASK).settings).held_out:
        assert prompting.wrap(row["question"]) == row["prompt"] and row["prompt"].count("<answer> 59 </answer>") == 1
        assert prompting.wrap(row["prompt"]) == row["prompt"], "a whole prompt is not put into the template again"
    turns = [{"role": "user", "content": "2 + 2?"}]
    assert prompting.wrap(turns) == turns and Prompting().wrap("2 + 2?") == turns
    assert "template r1 with a worked example" in prompting.describe() and "max_new_tokens 40" in prompting.describe()


def test_a_supervised_run_has_the_template_that_its_sources_share() -> None:
    sources = {"a": {"path": "a.jsonl", "template": "r1"}, "b": {"path": "b.jsonl", "template": "r1"}}
    run = {"stage": "sft", "model": {"name": "m"}, "data": {"sources": sources}, "eval": {"every_steps": 0}}
    assert make_prompting(run) == Prompting(R1_ZERO)
    assert make_prompting({**run, "data": {"sources": {**sources, "c": {"path": "c.jsonl"}}}}) is None
    assert make_prompting({**run, "data": {"sources": {"c": {"path": "c.jsonl"}}}}) == Prompting("chat")
    assert make_prompting({"model": {"name": "m"}}) is None


def test_columns_and_solutions_are_read_as_the_run_reads_them() -> None:
    asked = Prompting(columns={"prompt": "question", "solution": "answer"}, extractor="gsm8k")
    built = asked.build({"question": "How many?", "answer": "4 + 4 = 8\n#### 1,008"})
    assert built["prompt"] == [{"role": "user", "content": "How many?"}] and built["solution"] == "1008"
    assert asked.build({"prompt": "How many?", "solution": 8.0})["solution"] == "8"


TEXTS = [
    "<think> 3 + 4 = 7 </think> <answer> 7 </answer>",
    "It is 7",
    "<think> 3 + 4 = 8 </think> <answer> 8 </answer>",
    "<answer> 7 </answer>",
]


@pytest.mark.parametrize(
    "changes", [{}, {"strict": ("number_reward",), "format": ""}, {"strict": ("answer_reward",), "format": ""}]
)
def test_scores_are_those_of_the_runs_own_evaluation(changes: dict) -> None:
    prompting = make_prompting({**RUN, "eval": {**EVAL, **changes}})
    assert prompting is not None and prompting.grading is not None
    config = prompting.grading.to_config("sums")
    rows = [{"prompt": f"3 + 4? ({i})", "solution": "7"} for i in range(len(TEXTS))]

    def generate(requests: list[Request]) -> list[Completion]:
        return [Completion((request.tokens[0],), (0.0,), "stop") for request in requests]

    problems = make_problems(rows, lambda prompt: (int(prompt[-2]),), config)
    own = evaluate(generate, lambda tokens: TEXTS[tokens[0]], problems, config, Sampling(), seed=0)
    answered = [
        Answered(row["prompt"], "7", [text], columns=row, ids=[(1,)]) for row, text in zip(rows, TEXTS, strict=True)
    ]
    scores, described = score(answered, grader=make_grader(config))
    assert scores["pass@1"] == own["eval/sums/pass@1"] and scores["pass@1_stderr"] == own["eval/sums/pass@1_stderr"]
    assert scores["lenient_pass@1"] == own["eval/sums/lenient"]
    if config.format:
        assert scores["format_rate"] == own["eval/sums/format_rate"]
    if config.strict == ("number_reward",):
        assert scores["cons@k"] == 0.75 and described[1]["answers"] == ["7"]


def test_a_benchmark_is_asked_as_the_run_asks(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "sums.jsonl"
    file.write_text(json.dumps({"prompt": "What is 3 + 4?", "solution": 7}) + "\n")
    prompting = make_prompting(RUN)
    assert prompting is not None
    name, (problem,) = load_benchmark(f"jsonl={file}", prompting=prompting)
    assert name == "sums" and problem.prompt == prompting.wrap("What is 3 + 4?") and problem.gold == "7"
    assert problem.columns["solution"] == "7"
    questions = tmp_path / "gsm8k.jsonl"
    questions.write_text(json.dumps({"question": "How many?", "answer": "#### 3"}) + "\n")
    _, (problem,) = load_benchmark(f"gsm8k={questions}", prompting=prompting)
    assert problem.prompt == prompting.wrap("How many?") and problem.columns["solution"] == "3"
    _, (problem,) = load_benchmark(f"gsm8k={questions}", prompting=Prompting())
    assert str(problem.prompt[0]).count("Please reason step by step") == 1, (
        "without grading the wording is the benchmark's"
    )


def test_a_file_comes_back_as_it_was_written(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    assert read_prompting(folder) is None
    with pytest.raises(UserError, match="--template=run needs a model that carries how it was asked"):
        choose_prompting(folder, "run")
    written = make_prompting(RUN, (2,))
    assert written is not None
    (folder / "prompting.json").write_text(written.to_text())
    assert read_prompting(folder) == written == choose_prompting(folder, "run") == choose_prompting(folder, None)
    assert choose_prompting(folder, "chat") is None and name_prompting(folder, "r1") == Prompting(R1_ZERO)
    assert name_prompting(folder, "run").example == Example(**EXAMPLE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "prompting.json: Expecting"),
        ('{"format": 9}', "must be a JSON object of format 1; remove it to ask without it"),
        ('{"format": 1, "templat": "x"}', "templat is not a known key; did you mean"),
        ('{"format": 1, "sampling": {"heat": 1}}', "sampling may hold temperature, top_k"),
        ('{"format": 1, "template": "no place"}', "template must be one of chat"),
    ],
)
def test_a_broken_file_is_named(tiny_model: pathlib.Path, tmp_path: pathlib.Path, text: str, message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "prompting.json").write_text(text)
    with pytest.raises(UserError) as caught:
        read_prompting(folder)
    assert message in str(caught.value)


def test_code_named_by_a_folder_is_not_imported(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "prompting.json").write_text(Prompting(grading=Grading(("os:system",), "number_reward")).to_text())
    with caplog.at_level(logging.WARNING):
        found = read_prompting(folder)
    assert found == Prompting() and "os:system" in caplog.text


def test_a_workdir_of_an_earlier_version_tells_it_by_its_config(tmp_path: pathlib.Path) -> None:
    found = read_prompting(FORMER_RUN)
    assert found is not None and found.template == "{question}" and found.stop_ids == STOP_IDS
    assert found.sampling["max_new_tokens"] == 8 and found.grading == Grading(
        ("answer_reward",), "number_reward", "r1_format_reward"
    )
    assert describe_missing(FORMER_RUN) == {"prompting.json": found.to_text()}
    run = shutil.copytree(FORMER_RUN, tmp_path / "run")
    (run / "model/prompting.json").write_text(Prompting("Q: {question}").to_text())
    assert read_prompting(run) == Prompting("Q: {question}") and describe_missing(run) == {}
    (run / "model/prompting.json").unlink()
    (run / "config.json").write_text('{"model": {}, "data": {"source": "addition", "templat": "r1"}}')
    assert read_prompting(run) is None and describe_missing(run) == {}
