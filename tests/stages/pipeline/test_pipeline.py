"""A pipeline on a toy model: every kind of stage, its lineage, and what is done again and what is not."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.core.metrics import read_rows
from r1jax.eval.pipeline_report import compare, tabulate
from r1jax.stages.pipeline import pipeline
from r1jax.stages.pipeline.manifest import hash_outputs
from r1jax.stages.pipeline.resolve import find_files, make_plan
from r1jax.weights import load_pretrained
from tests.environment import make_xla_flags
from tests.stages.runs import read_settings

CONFIG = pathlib.Path(__file__).with_name("tiny_pipeline.py")
ROOT = CONFIG.parents[3]
ORDER = ["data", "vocabulary", "base", "zero", "cold_data", "cold_start", "rl_all", "distilled"]
MODELS = {"base", "zero", "cold_start", "rl_all", "distilled"}


def command(workdir: pathlib.Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "r1jax.train", f"--config={CONFIG}", f"--workdir={workdir}", *flags]


def environment() -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": make_xla_flags(1)}


def read_record(workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in json.loads((workdir / "pipeline.json").read_text())["stages"]}


def load(**changes: Any) -> Any:
    return read_settings(CONFIG, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of an uninterrupted run. Not to be changed."""
    workdir = tmp_path_factory.mktemp("pipeline") / "run"
    done = subprocess.run(command(workdir), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


def test_every_stage_leaves_its_folder_and_its_entry(whole: pathlib.Path):
    record = read_record(whole)
    assert list(record) == ORDER
    assert [entry["folder"] for entry in record.values()] == [f"{n:02}_{name}" for n, name in enumerate(ORDER, 1)]
    for name, entry in record.items():
        assert entry["status"] == "done" and entry["seconds"] > 0
        assert (whole / entry["folder"]).is_dir() and entry["outputs"] == hash_outputs(whole / entry["folder"])
        assert set(entry["inputs"]) == {"config", *entry["takes"]}
        assert (set(entry["outputs"]) == {"model"}) == (name in MODELS)
    assert set(record["zero"]["takes"]) == {"base", "data"}
    assert set(record["distilled"]["takes"]) == {"base", "rl_all", "data"}
    assert load_pretrained(whole / "08_distilled")[1] is not None


def test_every_model_is_measured_on_the_same_problems(whole: pathlib.Path):
    record = read_record(whole)
    golds = []
    for name in MODELS:
        metrics, folder = record[name]["metrics"], whole / record[name]["folder"]
        assert {"accuracy", "accuracy_stderr", "format_rate", "language", "mixed", "mean_length"} <= set(metrics)
        assert metrics["flops"] > 0 and metrics["tokens"] > 0
        rows = [json.loads(line) for line in (folder / "evaluation.samples.jsonl").read_text().splitlines()]
        assert all(len(row["completions"]) == 2 for row in rows)
        golds.append([(row["problem"], row["gold"]) for row in rows])
    assert len(golds[0]) == 4 and all(gold == golds[0] for gold in golds)
    held_out = {row["prompt"] for row in map(json.loads, (whole / "01_data/held_out.jsonl").read_text().splitlines())}
    asked = {row["prompt"] for row in map(json.loads, (whole / "01_data/problems.jsonl").read_text().splitlines())}
    assert len(held_out) == 4 and not held_out & asked
    assert [row["stage"] for row in tabulate(list(record.values()))] == [name for name in ORDER if name in MODELS]
    ways = compare(list(record.values()), {"a": ["distilled"], "b": ["base", "zero"]})
    assert [way["model"] for way in ways] == ["a", "b"]


def test_the_judge_reads_requests_alone(whole: pathlib.Path):
    """Sums have no judgement and requests no answer; both have the others."""
    rows = read_rows(whole / "07_rl_all" / "samples.jsonl")
    answers = [row for row in rows if "rewards" in row and "kind" not in row]
    assert answers and all("letters_reward" in row["rewards"] for row in answers)
    assert all(row["rewards"]["judge_reward"] is None for row in answers if "What is" in str(row["prompt"]))


class Runs:
    """Counts the stages that a pipeline would run, and takes them for done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.reasons: dict[str, str] = {}
        monkeypatch.setattr(pipeline, "run_stage", self._note)
        monkeypatch.setattr(pipeline, "finish_stage", lambda *_: None)
        monkeypatch.setattr(pipeline, "_measure", lambda *_: None)

    def _note(self, planned: Any, entry: Any, inputs: Any, why: str, record: Any) -> None:
        self.reasons[planned.name] = why
        entry |= {"inputs": inputs, "outputs": {"model": "another"}, "seconds": 0.0, "metrics": {}, "status": "noted"}
        record.write()


@pytest.fixture
def copy(whole: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


def test_what_is_done_is_kept(copy: pathlib.Path, runs: Runs):
    pipeline.run(load(), copy)
    assert runs.reasons == {}
    assert "cold_start" in (copy / "report.html").read_text()


def test_a_changed_stage_is_done_again_and_all_that_comes_of_it(copy: pathlib.Path, runs: Runs):
    pipeline.run(load(stages__cold_start__steps=3), copy)
    assert runs.reasons == {
        "cold_start": "config changed",
        "rl_all": "cold_start changed",
        "distilled": "rl_all changed",
    }


@pytest.mark.parametrize(
    "key", ["stages.zero.checkpoint.every_steps", "stages.zero.label", "stages.zero.log.tensorboard"]
)
def test_what_does_not_change_the_outcome_is_no_reason(copy: pathlib.Path, runs: Runs, key: str):
    values = {"checkpoint.every_steps": "2", "label": "Zero", "log.tensorboard": "true"}
    pipeline.run(load(**{key: values[key.removeprefix("stages.zero.")]}), copy)
    assert runs.reasons == {}


def test_outputs_that_were_changed_are_made_again(copy: pathlib.Path, runs: Runs):
    with open(copy / "05_cold_data" / "set.jsonl", "a") as file:
        file.write('{"prompt": "a", "completion": "b"}\n')
    pipeline.run(load(), copy)
    assert (
        "is missing or was changed" in runs.reasons["cold_data"] and runs.reasons["cold_start"] == "cold_data changed"
    )


def test_a_missing_input_is_an_error_and_no_reason_to_do_a_stage_again(
    copy: pathlib.Path, runs: Runs, tmp_path: pathlib.Path
):
    problems = shutil.copy(copy / "01_data" / "problems.jsonl", tmp_path / "problems.jsonl")
    own = load(stages__zero__data__path=problems)
    pipeline.run(own, copy)
    assert "zero" in runs.reasons
    record = json.loads((copy / "pipeline.json").read_text())
    for entry in record["stages"]:
        entry |= {"status": "done", "outputs": hash_outputs(copy / entry["folder"])}
    (copy / "pipeline.json").write_text(json.dumps(record))
    os.rename(problems, tmp_path / "away.jsonl")
    runs.reasons.clear()
    with pytest.raises(UserError, match=r"stage zero: .*problems.jsonl is missing.*config.stages.zero"):
        pipeline.run(own, copy)
    assert runs.reasons == {} and (copy / "04_zero" / "checkpoints").is_dir()


def test_the_folder_of_a_stage_that_is_done_again_is_set_aside(tmp_path: pathlib.Path):
    folder = tmp_path / "04_zero"
    for number in (1, 2):
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(str(number))
        pipeline.set_aside_stage(folder)
    pipeline.set_aside_stage(folder)
    assert {path.name: (path / "metrics.jsonl").read_text() for path in tmp_path.iterdir()} == {
        "04_zero.earlier-1": "1",
        "04_zero.earlier-2": "2",
    }


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99, "stages": []}'])
def test_a_record_that_cannot_be_read_ends_the_run(copy: pathlib.Path, runs: Runs, text: str):
    (copy / "pipeline.json").write_text(text)
    with pytest.raises(UserError, match="pipeline.json .*; move it away to begin all stages anew"):
        pipeline.run(load(), copy)
    assert runs.reasons == {} and (copy / "pipeline.json").read_text() == text


def test_a_stage_can_be_done_again_once_by_one_command(copy: pathlib.Path, runs: Runs, monkeypatch: pytest.MonkeyPatch):
    def stop(*arguments: Any) -> None:
        runs._note(*arguments)
        raise KeyboardInterrupt

    again = load(rerun="zero")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pipeline, "run_stage", stop)
        pipeline.run(again, copy)
    assert runs.reasons == {"zero": "config.rerun names it"}
    runs.reasons.clear()
    record = json.loads((copy / "pipeline.json").read_text())
    assert record["redone"] == ["zero"]
    record["stages"][3] |= {"status": "done", "outputs": hash_outputs(copy / "04_zero")}
    (copy / "pipeline.json").write_text(json.dumps(record))
    pipeline.run(again, copy)
    assert runs.reasons == {}, "the interrupted command had done it, and it came out the same"
    pipeline.run(again, copy)
    assert "zero" in runs.reasons, "another command"


def test_a_skipped_stage_hands_on_what_it_would_have_started_from(copy: pathlib.Path):
    settings = load(skip="cold_start")
    plan = {planned.name: planned for planned in make_plan(settings, copy)[0]}
    assert plan["rl_all"].settings.model.name == str(copy / "04_zero") and plan["cold_start"].skipped
    assert plan["rl_all"].takes == ("zero", "data")


def test_a_stage_starts_from_elsewhere(copy: pathlib.Path, tiny_model: pathlib.Path):
    plan = make_plan(load(stages__rl_all__init=tiny_model), copy)[0]
    assert plan[6].settings.model.name == str(tiny_model) and plan[6].takes == ("data",)


def test_a_text_too_long_for_a_path_names_no_file(tiny_model: pathlib.Path):
    values = {"template": "<think> </think> " * 500 + "{question}", "path": str(tiny_model)}
    assert list(find_files(values)) == [tiny_model]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": "data,base"}, "config.order must name every stage of config.stages once"),
        ({"rerun": "dreams"}, "config.rerun must name stages .* got 'dreams'"),
        ({"stages__zero__init": "rl_all"}, r"stage zero \(config.stages.zero\): @rl_all must name an earlier stage"),
        ({"stages__zero__init": "none/of/it", "stages__zero__steps": 0}, "stage zero .* config.steps must be at least"),
        ({"stages__zero__stage": "dreams"}, "stage zero .* config.stage must be one of"),
        ({"stages__base__model__tokenizer": "@dreams"}, "stage base .* @dreams must name an earlier stage"),
        ({"skip": "base"}, "stage zero .* @base is skipped"),
    ],
)
def test_a_mistake_gets_one_line_before_anything_runs(tmp_path: pathlib.Path, changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        pipeline.run(load(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
