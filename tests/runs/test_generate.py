"""Completions of a file: what a row holds, that nothing but seed, number and tokens decides it, and taking up again."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest

from r1jax import generate as command
from r1jax.core.errors import UserError
from r1jax.data.files import read_rows
from r1jax.eval.prompting import Prompting
from r1jax.models.transformer import merge, split
from r1jax.runs.generate import RESULTS, Generation, generate_file
from r1jax.runs.sampler import Sampler, load_sampler
from r1jax.weights import load_pretrained
from tests.environment import make_xla_flags
from tests.tiny_model import STOP_IDS

ROOT = pathlib.Path(__file__).resolve().parents[2]
ONE_DEVICE = {"XLA_FLAGS": make_xla_flags(1)}
ROWS: list[dict[str, Any]] = [
    {"prompt": "What is 2 + 2?", "solution": "4"},
    {"prompt": [{"role": "user", "content": "Say it in Chinese: 日本"}], "id": 7},
    {"tokens": [10, 20, 30], "note": None},
    {"prompt": "A longer text, of more than thirty-two bytes, needs an engine of another size.", "id": "x"},
    {"tokens": [11]},
    {"prompt": "What is 2 + 2?", "solution": "4"},
]
CONFIG = Generation(num_samples=2, temperature=0.9, top_p=0.95, top_k=50, max_new_tokens=6, seed=3)


def write(path: pathlib.Path, rows: list[dict[str, Any]] = ROWS) -> pathlib.Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def sampler(tiny_model: pathlib.Path) -> Sampler:
    return load_sampler(tiny_model, slots=4)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write(tmp_path_factory.mktemp("prompts") / "in.jsonl")


@pytest.fixture(scope="module")
def whole(sampler: Sampler, source: pathlib.Path) -> list[dict[str, Any]]:
    output = source.with_name("whole.jsonl")
    generate_file(sampler, read_rows(str(source)), output, CONFIG)
    return read(output)


def test_a_row_keeps_its_fields_and_gets_its_completions(whole: list[dict[str, Any]], sampler: Sampler):
    assert len(whole) == len(ROWS)
    for given, row in zip(ROWS, whole, strict=True):
        assert list(row) == [*given, *RESULTS] and {name: row[name] for name in given} == given
        for text, ids, logprobs, reason in zip(*(row[name] for name in RESULTS), strict=True):
            assert len(ids) == len(logprobs) <= CONFIG.max_new_tokens and max(logprobs) <= 0
            assert reason == ("stop" if ids[-1] in STOP_IDS else "length")
            assert not set(ids[:-1]) & set(STOP_IDS) and (reason == "stop" or len(ids) == CONFIG.max_new_tokens)
            assert text == sampler.tokenizer.decode(ids, skip_special=True)
        assert row["completion_tokens"][0] != row["completion_tokens"][1]
    assert whole[0]["completion_tokens"] != whole[5]["completion_tokens"], "equal rows are sampled apart"


def test_a_text_goes_into_the_template_that_is_asked_for_and_stays_as_it_was_in_its_row(
    sampler: Sampler, tmp_path: pathlib.Path
):
    greedy = Generation(temperature=0.0, max_new_tokens=6)
    for name, prompt, wrap in (("a", "2 + 2", Prompting("What is {question}?").wrap), ("b", "What is 2 + 2?", None)):
        rows = read_rows(str(write(tmp_path / f"{name}.in.jsonl", [{"prompt": prompt}])))
        generate_file(sampler, rows, tmp_path / f"{name}.jsonl", greedy, wrap=wrap)
    (wrapped,), (whole,) = read(tmp_path / "a.jsonl"), read(tmp_path / "b.jsonl")
    assert wrapped["prompt"] == "2 + 2" and wrapped["completion_tokens"] == whole["completion_tokens"]


def test_a_flag_outranks_the_runs_sampling_and_that_the_default():
    values = command.define_flags()
    values(["generate", "--temperature=1"])
    run = Prompting(sampling={"temperature": 0.6, "max_new_tokens": 40, "min_p": 0.1})
    names = ("temperature", "top_p", "max_new_tokens")
    expected = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 40}
    assert command.choose_sampling(values, names, run) == {**expected, "min_p": 0.1}
    assert command.choose_sampling(values, names, None) == {**expected, "max_new_tokens": 256}


def log_softmax(tiny_model: pathlib.Path, tokens: list[int], count: int, temperature: float) -> np.ndarray:
    """Log-probs of what follows each of the last `count` + 1 tokens, by the model without a cache."""
    padded = np.array([tokens + [0] * (16 - len(tokens))])
    graph, params = split(load_pretrained(tiny_model)[0])
    logits = jax.jit(lambda params: merge(graph, params)(padded))(params)[0, len(tokens) - count - 1 : len(tokens) - 1]
    return np.asarray(jax.nn.log_softmax(logits / temperature))


def test_logprobs_are_those_after_temperature_and_before_truncation(
    tiny_model: pathlib.Path, whole: list[dict[str, Any]]
):
    row = whole[2]
    for ids, logprobs in zip(row["completion_tokens"], row["logprobs"], strict=True):
        expected = log_softmax(tiny_model, [*row["tokens"], *ids], len(ids), CONFIG.temperature)
        np.testing.assert_allclose(logprobs, expected[np.arange(len(ids)), ids], atol=1e-5)


def test_greedy_takes_the_likeliest_with_logprobs_at_temperature_one(
    tiny_model: pathlib.Path, sampler: Sampler, source: pathlib.Path, tmp_path: pathlib.Path
):
    greedy = Generation(num_samples=2, temperature=0, top_p=0.5, top_k=3, max_new_tokens=6)
    generate_file(sampler, read_rows(str(source))[2:5:2], tmp_path / "out.jsonl", greedy)
    row, _ = read(tmp_path / "out.jsonl")
    ids, logprobs = row["completion_tokens"][0], row["logprobs"][0]
    expected = log_softmax(tiny_model, [*row["tokens"], *ids], len(ids), 1.0)
    assert expected.argmax(-1).tolist() == ids == row["completion_tokens"][1]
    np.testing.assert_allclose(logprobs, expected.max(-1), atol=1e-5)


def test_the_outcome_does_not_depend_on_the_batch(
    tiny_model: pathlib.Path, source: pathlib.Path, whole: list[dict[str, Any]], tmp_path: pathlib.Path
):
    other = load_sampler(tiny_model, slots=11)
    generate_file(other, read_rows(str(source)), tmp_path / "out.jsonl", CONFIG)
    for one, two in zip(whole, read(tmp_path / "out.jsonl"), strict=True):
        assert one["completion_tokens"] == two["completion_tokens"]
        for a, b in zip(one["logprobs"], two["logprobs"], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def note_settings(output: pathlib.Path) -> pathlib.Path:
    """Says beside an output that `generate_file` wrote it by CONFIG."""
    output.with_name(f"{output.name}.settings.json").write_text(json.dumps(dataclasses.asdict(CONFIG)))
    return output


def test_rows_that_are_there_are_kept_and_the_torn_one_is_redone(
    sampler: Sampler, source: pathlib.Path, whole: list[dict[str, Any]], tmp_path: pathlib.Path
):
    lines = [json.dumps(row) for row in whole]
    output = note_settings(tmp_path / "out.jsonl")
    output.write_text("\n".join([lines[0].replace('"solution": "4"', '"solution": "4" '), *lines[1:3], lines[3][:40]]))
    counts = generate_file(sampler, read_rows(str(source)), output, CONFIG)
    assert counts["rows"] == 3 and read(output) == whole
    assert output.read_text().startswith(lines[0].replace('"4"', '"4" ')), "a kept row is not written anew"
    before = output.read_bytes()
    assert generate_file(sampler, read_rows(str(source)), output, CONFIG)["rows"] == 0
    assert output.read_bytes() == before


def test_a_row_whose_input_changed_is_redone(
    sampler: Sampler, source: pathlib.Path, whole: list[dict[str, Any]], tmp_path: pathlib.Path
):
    output = write(tmp_path / "out.jsonl", [*whole[:2], {**whole[2], "note": "edited"}, *whole[3:]])
    note_settings(output)
    assert generate_file(sampler, read_rows(str(source)), output, CONFIG)["rows"] == 1
    assert read(output) == whole


def test_rows_of_other_settings_are_not_mixed(sampler: Sampler, source: pathlib.Path, tmp_path: pathlib.Path):
    output, rows = tmp_path / "out.jsonl", read_rows(str(source))[1:3]
    generate_file(sampler, rows, output, CONFIG)
    with pytest.raises(UserError, match=r"out.jsonl has rows made with temperature=0.9, this run has temperature=0"):
        generate_file(sampler, rows, output, Generation(0.0, 50, 0.95, max_new_tokens=6, num_samples=2, seed=3))
    output.unlink()
    generate_file(sampler, rows, output, dataclasses.replace(CONFIG, seed=4))
    assert len(read(output)) == 2


def test_a_file_of_somebody_else_is_left_alone(tiny_model: pathlib.Path, source: pathlib.Path, tmp_path: pathlib.Path):
    prompts = shutil.copy(source, tmp_path / "prompts.jsonl")
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for output in (prompts, notes):
        before = output.read_bytes()
        arguments = [f"--model={tiny_model}", f"--prompts={prompts}", f"--output={output}"]
        assert command.main(["generate", *arguments]) == 2
        assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "prompts.jsonl"]


def test_the_same_rows_of_a_model_that_trained_on_are_not_mixed(
    sampler: Sampler, source: pathlib.Path, tmp_path: pathlib.Path
):
    output, rows = tmp_path / "out.jsonl", read_rows(str(source))[1:2]
    model = {"model": "runs/x", "model_digest": "1234", "dtype": "float32"}
    generate_file(sampler, rows, output, CONFIG, model=model)
    generate_file(sampler, rows, output, CONFIG, model={**model, "model": "a/copy"})
    for change in ({"model_digest": "5678"}, {"dtype": "bfloat16"}):
        with pytest.raises(UserError, match=f"has rows made with {next(iter(change))}="):
            generate_file(sampler, rows, output, CONFIG, model=model | change)


def test_prompts_of_many_lengths_need_few_engines(sampler: Sampler, tmp_path: pathlib.Path):
    sizes = [1, 31, 32, 33, 64]
    path = write(tmp_path / "in.jsonl", [{"tokens": [5 + size, *range(10, 9 + size)]} for size in sizes])
    generate_file(sampler, read_rows(str(path)), tmp_path / "out.jsonl", CONFIG)
    assert {size for size, *_ in sampler._engines} == {32, 64, 128}


def test_a_model_without_a_tokenizer(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    source = write(tmp_path / "in.jsonl", ROWS[2:3])
    arguments = [f"--model={folder}", f"--prompts={source}", f"--output={tmp_path / 'out.jsonl'}", "--num_samples=20"]
    assert command.main(["generate", *arguments, "--max_new_tokens=40", "--top_k=300", "--batch_size=20"]) == 0
    (row,) = read(tmp_path / "out.jsonl")
    assert row["completions"] == [""] * 20
    stopped = [ids for ids, why in zip(row["completion_tokens"], row["finish_reasons"], strict=True) if why == "stop"]
    assert stopped and all(ids[-1] in STOP_IDS for ids in stopped)


# --- The command ---


def start(model: pathlib.Path, source: pathlib.Path, output: pathlib.Path) -> subprocess.Popen:
    settings = {**dataclasses.asdict(CONFIG), "batch_size": 4, "model": model, "prompts": source, "output": output}
    return subprocess.Popen(
        [sys.executable, "-m", "r1jax.generate", *(f"--{name}={value}" for name, value in settings.items())],
        cwd=ROOT,
        env={**os.environ, **ONE_DEVICE},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def count_lines(path: pathlib.Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_and_started_again_it_ends_with_the_same_file(
    tiny_model: pathlib.Path, sampler: Sampler, tmp_path: pathlib.Path
):
    rows = [{"tokens": [5 + number // 250, 5 + number % 250]} for number in range(1000)]
    source, output = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    process = start(tiny_model, source, output)
    while process.poll() is None and count_lines(output) < 20:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 20 <= count_lines(output) < len(rows)
    process = start(tiny_model, source, output)
    said = process.communicate()[0]
    assert process.returncode == 0 and "rows that are complete" in said and "tokens/s" in said
    generate_file(sampler, read_rows(str(source)), tmp_path / "whole.jsonl", CONFIG)
    found, expected = read(output), read(tmp_path / "whole.jsonl")
    assert [row["tokens"] for row in found] == [row["tokens"] for row in rows]
    assert [row["completion_tokens"] for row in found] == [row["completion_tokens"] for row in expected]


GOOD = {"model": "{model}", "prompts": "{source}", "output": "{folder}/out.jsonl"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "error: --model is missing (see --help)"),
        ({"prompts": None}, "error: --prompts is missing (see --help)"),
        ({"output": None}, "error: --output is missing (see --help)"),
        ({"model": "none/of/this"}, "no model none/of/this: there is no file or folder"),
        ({"prompts": "none.jsonl"}, "no such file: none.jsonl (--prompts)"),
        ({"prompts": "{folder}/bad.jsonl"}, "bad.jsonl:2: not a JSON object"),
        ({"prompts": "{folder}/empty.jsonl"}, "empty.jsonl holds no rows"),
        ({"prompts": "{folder}/lacks.jsonl"}, "lacks.jsonl:1: a row needs prompt (a text or a list of messages) or"),
        ({"prompts": "{folder}/ids.jsonl"}, "ids.jsonl:1: tokens must be a list of ids from 0 to 303, got [1, 304]"),
        ({"num_samples": "0"}, "num_samples must be at least 1, got 0"),
        ({"temperature": "-1"}, "temperature must be 0 (greedy) or more, got -1.0"),
        ({"top_p": "0"}, "top_p must be above 0 and at most 1 (off), got 0.0"),
        ({"max_new_tokens": "many"}, "max_new_tokens"),
        ({"batch_size": "0"}, "batch_size must be at least 1, got 0"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ({"mesh": "rows=2"}, "a mesh must be axis=size,... with axes data"),
        ({"output": "{source}/x/out.jsonl"}, "out.jsonl cannot be written"),
        ({"outptu": "x"}, "outptu"),
    ],
)
def test_a_mistake_gets_one_line(
    tiny_model: pathlib.Path,
    source: pathlib.Path,
    tmp_path: pathlib.Path,
    changes: dict[str, str | None],
    message: str,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{oops\n')
    (tmp_path / "lacks.jsonl").write_text('{"question": "a"}\n')
    (tmp_path / "ids.jsonl").write_text('{"tokens": [1, 304]}\n')
    flags = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    places = {"model": tiny_model, "source": source, "folder": tmp_path}
    assert command.main(["generate", *(f"--{name}={value.format(**places)}" for name, value in flags.items())]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.startswith("error: ") and output.err.count("\n") == 1
    assert not output.out and not (tmp_path / "out.jsonl").exists()


def test_help_is_for_newcomers(capsys: pytest.CaptureFixture[str]):
    assert command.main(["generate", "--help"]) == 0
    said = capsys.readouterr().out
    for words in ("python -m r1jax.generate --model=", "--temperature:", "--mesh:", "Run the same command again"):
        assert words in said


@pytest.mark.slow
def test_a_mesh_of_many_devices_gives_the_same_tokens(
    tiny_model: pathlib.Path, source: pathlib.Path, whole: list[dict[str, Any]], tmp_path: pathlib.Path
):
    arguments = [f"--model={tiny_model}", f"--prompts={source}", f"--output={tmp_path / 'out.jsonl'}"]
    arguments += ["--num_samples=2", "--temperature=0.9", "--top_p=0.95", "--top_k=50", "--max_new_tokens=6"]
    assert command.main(["generate", *arguments, "--seed=3", "--batch_size=3", "--mesh=data=4,tensor=2"]) == 0
    found = read(tmp_path / "out.jsonl")
    assert [row["completion_tokens"] for row in found] == [row["completion_tokens"] for row in whole]
