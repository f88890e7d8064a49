"""The command that measures: samples that exist against figures by hand, a model end to end, one line for a mistake."""

import json
import logging
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from r1jax import evaluate as command
from r1jax.eval.prompting import Grading, Prompting
from r1jax.models.transformer import merge, split
from r1jax.weights import load_pretrained

# pass@1 of each: 1/2, 0, 1. Votes: a tie that the first (wrong) answer wins; wrong; right.
SAMPLES: list[dict[str, Any]] = [
    {"prompt": "2 + 2?", "completions": ["\\boxed{5}", "\\boxed{4}"], "solution": "4"},
    {"completions": ["9", "it is 8"], "solution": 8.0, "completion_tokens": [[1], [2, 3, 4]]},
    {"completions": ["<answer>(B)</answer>", "Answer: B"], "solution": "B", "finish_reasons": ["stop", "length"]},
]


def write(path: pathlib.Path, rows: list[dict[str, Any]]) -> pathlib.Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_samples_that_exist(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    source, output = write(tmp_path / "mine.jsonl", SAMPLES), tmp_path / "new" / "out.json"
    assert command.main(["evaluate", f"--samples={source}", f"--output={output}"]) == 0
    written = json.loads(output.read_text())
    assert written["model"] == str(source) and list(written) == ["model", "benchmarks"]
    assert written["benchmarks"] == {
        "mine": {
            "n": 3,
            "k": 2,
            "pass@1": pytest.approx(1 / 2),
            "pass@1_stderr": pytest.approx(1 / (2 * 3**0.5)),  # the deviation of 1/2, 0, 1 is 1/2
            "pass@k": pytest.approx(2 / 3),
            "cons@k": pytest.approx(1 / 3),
            "lenient_pass@1": pytest.approx((1 / 2 + 1 / 2 + 1) / 3),
            "format_rate": pytest.approx(4 / 6),
            "mean_length": 2.0,
            "truncated": 0.5,
        }
    }
    rows = [json.loads(line) for line in (tmp_path / "new" / "out.samples.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in rows] == [[False, True], [False, False], [True, True]]
    assert rows[0]["benchmark"] == "mine" and rows[0]["problem"] == "2 + 2?" and rows[2]["answers"] == ["B", "B"]
    assert sorted(path.name for path in output.parent.iterdir()) == ["out.json", "out.samples.jsonl"]
    assert "50.0% ± 28.9" in capsys.readouterr().out


def test_a_model_is_asked_and_scored(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    rows = [{"prompt": "2 + 2 =", "solution": "4"}, {"prompt": [{"role": "user", "content": "?"}], "solution": "B"}]
    source = write(tmp_path / "sums.jsonl", rows)
    questions = write(tmp_path / "test.jsonl", [{"question": "How many?", "answer": "#### 3"}] * 2)
    arguments = [f"--benchmarks=jsonl={source},gsm8k={questions}", f"--output={tmp_path / 'out.json'}", "--limit=2"]
    arguments += [f"--model={tiny_model}", "--max_new_tokens=5", "--temperature=0", "--num_samples=2"]
    assert command.main(["evaluate", *arguments, "--batch_size=4"]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["model"] == str(tiny_model) and list(written["benchmarks"]) == ["sums", "gsm8k"]
    for scores in written["benchmarks"].values():
        assert (scores["n"], scores["k"], scores["pass@1"], scores["format_rate"]) == (2, 2, 0.0, 0.0)
    rows = [json.loads(line) for line in (tmp_path / "out.samples.jsonl").read_text().splitlines()]
    assert [row["benchmark"] for row in rows] == ["sums", "sums", "gsm8k", "gsm8k"]
    assert rows[2]["problem"][0]["content"].startswith("How many?\nPlease reason step by step")
    model, tokenizer = load_pretrained(tiny_model)
    graph, params = split(model)
    predict = jax.jit(lambda params, tokens: merge(graph, params)(tokens))
    ids = tokenizer.encode("2 + 2 =")
    for _ in range(rows[0]["lengths"][0]):  # one shape for all: what follows a token does not change it
        ids.append(int(predict(params, np.array([ids + [0] * (16 - len(ids))]))[0, len(ids) - 1].argmax()))
    assert rows[0]["completions"] == [tokenizer.decode(ids[-rows[0]["lengths"][0] :])] * 2


def test_a_model_that_carries_how_its_run_asked_is_asked_so(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    sampling = {"temperature": 0.0, "max_new_tokens": 5}
    asked = Prompting("Q: {question} A:", sampling=sampling, grading=Grading(("number_reward",), "number_reward"))
    (folder / "prompting.json").write_text(asked.to_text())
    source = write(tmp_path / "sums.jsonl", [{"prompt": "2 + 2?", "solution": 4}, {"prompt": "1 + 1?", "solution": 2}])
    arguments = ["evaluate", f"--model={folder}", f"--benchmarks=jsonl={source}", "--batch_size=4"]
    with caplog.at_level(logging.INFO):
        assert command.main([*arguments, f"--output={tmp_path / 'own.json'}"]) == 0
    assert "asking as the run did: template one of its own, temperature 0, max_new_tokens 5, strict is" in caplog.text
    own = [json.loads(line) for line in (tmp_path / "own.samples.jsonl").read_text().splitlines()]
    assert [row["problem"] for row in own] == ["Q: 2 + 2? A:", "Q: 1 + 1? A:"] and own[0]["lengths"] == [5]
    assert own[0]["rules"][0].startswith("number_reward: ")
    flags = ["--template=plain", "--max_new_tokens=5", "--temperature=0", f"--output={tmp_path / 'plain.json'}"]
    assert command.main([*arguments, *flags]) == 0
    plain = [json.loads(line) for line in (tmp_path / "plain.samples.jsonl").read_text().splitlines()]
    assert plain[0]["problem"] == "2 + 2?" and not plain[0]["rules"][0].startswith("number_reward: ")


GOOD = {"samples": "{folder}/mine.jsonl", "output": "{folder}/out.json"}
MODEL = {"samples": None, "model": "{model}"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": None}, "error: --output is missing"),
        ({"samples": None}, "error: exactly one of --model and --samples must be given"),
        ({"model": "{model}"}, "error: exactly one of --model and --samples must be given"),
        ({"samples": "none.jsonl"}, "no such file: none.jsonl (--samples)"),
        ({"samples": "{folder}/lacks.jsonl"}, "lacks.jsonl:1: no solution to compare with (--samples)"),
        ({"samples": "{folder}/texts.jsonl"}, "texts.jsonl:1: completions must be a list of texts, got 4 (--samples)"),
        ({"num_samples": "3"}, "num_samples is 3, but a problem has only 2 completions"),
        ({"limit": "-1"}, "limit must be at least 0, got -1"),
        ({"output": "{folder}/mine.jsonl/out.json"}, "out.json cannot be written"),
        (MODEL, "error: --benchmarks is missing"),
        ({**MODEL, "benchmarks": "gsm9k"}, "unknown benchmark 'gsm9k'"),
        (
            {**MODEL, "benchmarks": "jsonl={folder}/rows.jsonl,jsonl={folder}/rows.jsonl"},
            "--benchmarks names rows twice",
        ),
        ({**MODEL, "benchmarks": "jsonl={folder}/rows.jsonl", "template": "x"}, "--template must be one of chat, r1"),
        ({**MODEL, "benchmarks": "jsonl={folder}/rows.jsonl", "template": "run"}, "--template=run needs a model that"),
        ({**MODEL, "benchmarks": "jsonl={folder}/rows.jsonl", "num_samples": "0"}, "num_samples must be at least 1"),
        (
            {**MODEL, "benchmarks": "jsonl={folder}/rows.jsonl", "model": "none/of/it"},
            "no model none/of/it: there is no file or folder",
        ),
        ({"smaples": "x"}, "smaples"),
    ],
)
def test_a_mistake_gets_one_line(
    tiny_model: pathlib.Path,
    tmp_path: pathlib.Path,
    changes: dict[str, str | None],
    message: str,
    capsys: pytest.CaptureFixture[str],
):
    write(tmp_path / "mine.jsonl", SAMPLES)
    write(tmp_path / "lacks.jsonl", [{"completions": ["4"]}])
    write(tmp_path / "texts.jsonl", [{"completions": 4, "solution": "4"}])
    write(tmp_path / "rows.jsonl", [{"prompt": "a", "solution": "4"}])
    flags = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    places = {"model": tiny_model, "folder": tmp_path}
    assert command.main(["evaluate", *(f"--{name}={value.format(**places)}" for name, value in flags.items())]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.startswith("error: ") and output.err.count("\n") == 1
    assert not output.out and not (tmp_path / "out.json").exists()


def test_help_is_for_newcomers(capsys: pytest.CaptureFixture[str]):
    assert command.main(["evaluate", "--help"]) == 0
    said = capsys.readouterr().out
    for words in ("python -m r1jax.evaluate --model=", "--samples:", "--benchmarks:", "pass@k (unbiased)"):
        assert words in said
