"""Distillation by traces on toy models: every part leaves its file, a stopped run goes on, mistakes get one line."""

import json
import pathlib
from typing import Any

import jax
import pytest

from r1jax import train
from r1jax.core.errors import UserError
from r1jax.core.metrics import read_rows
from r1jax.core.sharding import make_mesh, use_mesh
from r1jax.stages import collection
from r1jax.stages.distill import traces as distill_traces
from r1jax.weights import load_pretrained
from tests.stages.letters import letters_reward
from tests.stages.runs import read_params, read_settings, untimed
from tests.tiny_model import write_tiny_model

CONFIG = pathlib.Path(__file__).with_name("tiny_distill.py")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Another random model than the student."""
    return write_tiny_model(tmp_path_factory.mktemp("teacher"), seed=1)


def run(workdir: pathlib.Path, teacher: pathlib.Path, student: pathlib.Path, **changes: Any) -> list[dict[str, Any]]:
    settings = read_settings(CONFIG, teacher__name=teacher, student__name=student, **changes)
    with use_mesh(make_mesh(settings.mesh, jax.devices()[:1])):
        distill_traces.distil(settings, workdir)
    return read_rows(workdir / "metrics.jsonl")


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, teacher: pathlib.Path, tiny_model: pathlib.Path
) -> tuple[pathlib.Path, list[dict[str, Any]]]:
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, run(workdir, teacher, tiny_model)


def test_the_chain_leaves_traces_set_statistics_and_a_student(whole: tuple[pathlib.Path, list[dict[str, Any]]]):
    workdir, rows = whole
    traces = [json.loads(line) for line in (workdir / "traces.jsonl").read_text().splitlines()]
    assert len(traces) == 30 and all(len(row["completions"]) == 4 for row in traces)
    kept = [json.loads(line) for line in (workdir / "set.jsonl").read_text().splitlines()]
    said = {(row["prompt"], text) for row in traces for text in row["completions"]}
    assert 0 < len(kept) < len(said) and {(row["prompt"], row["completion"]) for row in kept} <= said
    statistics = json.loads((workdir / "set.stats.json").read_text())
    assert statistics["input"]["samples"] == 120 and statistics["output"]["samples"] == len(kept)
    assert statistics["input"]["samples"] - sum(statistics["dropped"].values()) == len(kept)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    for row in (rows[0], rows[-1]):
        assert row["eval/sums/problems"] == 5 and row["eval/sums/pass@1_stderr"] >= 0 and row["eval/loss"] > 0
    assert rows[-1]["eval/loss"] < rows[0]["eval/loss"], "the student says what the teacher says"
    assert (workdir / "report.html").exists()
    assert {path.split("'")[3] for path in read_params(workdir) if path.startswith("['layers']")} == {"0"}
    assert load_pretrained(workdir)[0].config.num_layers == 1, "the workdir is a MODEL, the student's"


def test_what_is_learnt_is_right_and_held_out_problems_are_not_in_it(whole: tuple[pathlib.Path, list[dict[str, Any]]]):
    workdir, _ = whole
    rows, scores = (
        [json.loads(line) for line in (workdir / name).read_text().splitlines()]
        for name in ("traces.jsonl", "traces.scores.jsonl")
    )
    good = set()
    for row, score in zip(rows, scores, strict=True):
        assert score["rewards"] == letters_reward(row["completions"], row["completion_tokens"])
        if sum(score["rewards"]) > 0:
            said = zip(row["completions"], score["rewards"], strict=True)
            good |= {(row["prompt"], text) for text, reward in said if reward >= 0.05}
    kept = [json.loads(line) for line in (workdir / "set.jsonl").read_text().splitlines()]
    assert {(row["prompt"], row["completion"]) for row in kept} <= good


@pytest.mark.parametrize(
    "place", [pytest.param("ask", marks=pytest.mark.slow), pytest.param("filter", marks=pytest.mark.slow), "train"]
)
def test_stopped_anywhere_it_ends_the_same(
    tmp_path: pathlib.Path,
    whole: tuple[pathlib.Path, list[dict[str, Any]]],
    teacher: pathlib.Path,
    tiny_model: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
):
    def stop_at(count: int, function: Any) -> Any:
        calls = iter(range(count))

        def stopping(*arguments: Any, **options: Any) -> Any:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return stopping

    with monkeypatch.context() as patched:
        if place == "ask":
            from r1jax.runs.journal import Journal

            patched.setattr(Journal, "put_line", stop_at(7, Journal.put_line))
        elif place == "filter":
            patched.setattr(collection.Record, "keep", stop_at(0, None))
        else:
            patched.setattr(distill_traces.Student, "step", stop_at(3, distill_traces.Student.step))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", teacher, tiny_model)
    rows = run(tmp_path / "run", teacher, tiny_model)
    workdir, expected = whole
    assert untimed(rows) == untimed(expected)
    assert (tmp_path / "run" / "set.jsonl").read_bytes() == (workdir / "set.jsonl").read_bytes()
    assert (tmp_path / "run" / "traces.jsonl").read_bytes() == (workdir / "traces.jsonl").read_bytes()


def test_a_run_of_another_config_is_not_touched(
    whole: tuple[pathlib.Path, list[dict[str, Any]]], teacher: pathlib.Path, tiny_model: pathlib.Path
):
    with pytest.raises(UserError, match="has a run with config.filters.min_reward = 0.05, this one has 0.4"):
        run(whole[0], teacher, tiny_model, filters__min_reward=0.4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filters__min_reward": 5.0}, "none of the teacher's 120 samples is left, dropped were"),
        ({"student__layers": 3}, r"config.model.layers must be from 1 to the model's 2 layers \(0: all\), got 3"),
        ({"generate__slots": 0}, "config.generate.slots at least 1"),
        ({"generate__num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"train__micro_batch_size": 3}, "config.train.micro_batch_size = 3 must divide"),
        ({"filters__language": "xx"}, "config.filters.language must be one of"),
        ({"rewards": '{"answr_reward": 1.0}'}, "did you mean answer_reward"),
    ],
)
def test_a_mistake_gets_one_line(
    tmp_path: pathlib.Path,
    whole: tuple[pathlib.Path, list[dict[str, Any]]],
    teacher: pathlib.Path,
    tiny_model: pathlib.Path,
    changes: dict[str, Any],
    message: str,
):
    (tmp_path / "run").mkdir()
    for name in ("traces.jsonl", "traces.jsonl.settings.json"):
        (tmp_path / "run" / name).write_bytes((whole[0] / name).read_bytes())
    if "student__layers" in changes:
        (tmp_path / "run" / "set.jsonl").write_bytes((whole[0] / "set.jsonl").read_bytes())
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", teacher, tiny_model, **changes)


def test_an_unknown_method_is_named():
    with pytest.raises(UserError, match=r"config.method must be one of .*traces.*, got 'dreams'"):
        read_settings(CONFIG, method="dreams")


def test_the_command_runs_the_stage(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    arguments = [f"--config={CONFIG}", "--config.teacher.name=none/of/it", "--config.student.name=none/of/it"]
    assert train.main(["train", *arguments, f"--workdir={tmp_path / 'run'}"]) == 2
    assert "error: no model none/of/it: there is no file or folder" in capsys.readouterr().err
