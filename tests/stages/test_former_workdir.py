"""Workdirs of the first format of config.json go on: a run resumes and reports, a pipeline's stages stay done.

tests/fixtures/workdir_format1/make.py says how they were made.
"""

import json
import pathlib
import shutil

import jax
import pytest

from r1jax.core.errors import UserError
from r1jax.core.metrics import read_rows
from r1jax.core.sharding import make_mesh, use_mesh
from r1jax.eval.report import write_report
from r1jax.eval.saved_config import FORMAT
from r1jax.runs.workdir import check_config
from r1jax.stages import grpo
from r1jax.stages.pipeline.manifest import Record, compare_inputs, hash_inputs
from r1jax.stages.pipeline.resolve import make_plan
from tests.stages.runs import CONFIG, ROOT, read_settings, untimed
from tests.tiny_model import write_tiny_model

FORMER = ROOT / "tests/fixtures/workdir_format1"
FLAGS = {"model__name": "tiny_model", "steps": 4, "checkpoint__every_steps": 2}
SIZES = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads".split()


@pytest.fixture
def workdir(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A copy of the run, stopped after two of four steps, beside the model that it names by a relative path."""
    sizes = json.loads((FORMER / "run/model/config.json").read_text())
    write_tiny_model(tmp_path / "tiny_model", **{key: sizes[key] for key in SIZES})
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(FORMER / "run", tmp_path / "run")


def test_it_resumes_to_the_same_end_and_reports(workdir: pathlib.Path) -> None:
    page = write_report(workdir).read_text("utf-8")
    assert "curriculum.skip" in page and "pools.skip" not in page
    settings = read_settings(CONFIG, log__tensorboard=False, **FLAGS)
    with use_mesh(make_mesh(settings.mesh, jax.devices()[:1])):
        grpo.GRPORun(settings, workdir).train()
    rows, expected = (untimed(read_rows(folder / "metrics.jsonl")) for folder in (workdir, FORMER))
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[:3] == expected[:3], "the rows before the checkpoint are kept"
    for row, other in zip(rows, expected, strict=True):
        new = {"flops", "eval/sums/letters_reward", "eval/sums/letters_reward_stderr"} & row.keys()  # metrics of today
        assert {key: row[key] for key in row.keys() - new} == pytest.approx(other, rel=1e-3, abs=1e-5)
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["format"] == FORMAT and saved["rollout"]["cache_pieces"] == 4 and "pools" not in saved
    assert saved["dynamic_sampling"] == {"max_rounds": 1, "filter_truncated": False}
    assert "curriculum.skip" in (workdir / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "config.seed = 0, this one has 1"),
        ({"curriculum__skip": 0.5}, "config.curriculum.skip = 0.0, this one has 0.5"),  # said under a former name
        ({"rollout__cache_pieces": 1}, "config.rollout.cache_pieces = 4, this one has 1"),  # not said at all
        ({"model__name": "other"}, "config.model.name = 'tiny_model', this one has 'other'"),
    ],
)
def test_other_values_are_refused(workdir: pathlib.Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(read_settings(CONFIG, **{**FLAGS, **changes}), workdir)
    check_config(read_settings(CONFIG, **FLAGS, eval__every_steps=1, log__show_every_steps=1), workdir)


def test_a_pipeline_s_stages_stay_done_but_for_those_that_changed(tmp_path: pathlib.Path) -> None:
    folder = shutil.copytree(FORMER / "pipeline", tmp_path / "run")
    config = ROOT / "tests/stages/pipeline/tiny_pipeline.py"
    for changes, expected in (({}, set()), ({"stages__zero__steps": 3}, {"zero"})):
        settings = read_settings(config, **changes)
        plan = make_plan(settings, folder)[0]
        record = Record(folder, plan, settings.comparison)
        inputs = {planned.name: hash_inputs(planned, record.entries) for planned in plan}
        redone = {name for name in inputs if compare_inputs(record.entries[name]["inputs"], inputs[name])}
        assert redone == expected and len(inputs) == 8
    record.write()
    assert json.loads((folder / "pipeline.json").read_text())["format"] == FORMAT


def test_a_stage_that_another_config_made_is_not_taken_for_done(tmp_path: pathlib.Path) -> None:
    """The record's hash is not that of the section in config.json: which config made the stage is not known."""
    folder = shutil.copytree(FORMER / "pipeline", tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["stages"]["zero"]["steps"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    settings = read_settings(ROOT / "tests/stages/pipeline/tiny_pipeline.py", stages__zero__steps=7)
    plan = {planned.name: planned for planned in make_plan(settings, folder)[0]}
    record = Record(folder, plan.values(), settings.comparison)
    now = hash_inputs(plan["zero"], record.entries)
    assert compare_inputs(record.entries["zero"]["inputs"], now) == "config changed"
