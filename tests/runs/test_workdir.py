"""config.json: every value, whole or not there, ended by one newline; a torn one stops no run."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.data.tasks import Example, TaskConfig
from r1jax.eval.prompting import Prompting, read_prompting
from r1jax.eval.saved_config import FORMAT
from r1jax.runs.model_setup import ModelConfig
from r1jax.runs.workdir import check_config, describe_change, write_config
from r1jax.text.prompts import R1_ZERO
from tests.tiny_model import STOP_IDS


@dataclasses.dataclass(frozen=True)
class Data:
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    path: str | None = None
    length: int = 8


@dataclasses.dataclass(frozen=True)
class Eval:
    every_steps: int = 0


@dataclasses.dataclass(frozen=True)
class Settings:
    seed: int = 0
    steps: int = 1
    stage: str = "toy"
    data: Data = Data()
    eval: Eval = Eval()


@dataclasses.dataclass(frozen=True)
class Asking:
    data: TaskConfig
    stage: str = "toy"


CONFIG = Settings(seed=1, steps=3, eval=Eval(2))


def test_the_config_is_written_whole_and_ends_in_one_newline(tmp_path: pathlib.Path):
    write_config(CONFIG, tmp_path / "run")
    text = (tmp_path / "run" / "config.json").read_text()
    assert (
        json.loads(text) == {"format": FORMAT, **dataclasses.asdict(CONFIG)}
        and text.endswith("}\n")
        and not text.endswith("\n\n")
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


@dataclasses.dataclass(frozen=True)
class AskingSettings(Settings):
    model: ModelConfig = ModelConfig()
    data: Any = TaskConfig("addition", template="r1")


def test_how_the_run_asks_stands_beside_the_description_of_its_model(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    settings = AskingSettings(model=ModelConfig(str(tiny_model)))
    write_config(settings, tmp_path / "run")
    (tmp_path / "run/checkpoints/1").mkdir(parents=True)
    assert read_prompting(tmp_path / "run/checkpoints/1") == Prompting(R1_ZERO, stop_ids=STOP_IDS)
    write_config(dataclasses.replace(settings, data=None), tmp_path / "run")
    assert not (tmp_path / "run/model/prompting.json").exists()


def test_a_kill_while_writing_leaves_the_old_config(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    write_config(CONFIG, tmp_path)
    before = (tmp_path / "config.json").read_text()

    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_config(dataclasses.replace(CONFIG, steps=9), tmp_path)
    assert (tmp_path / "config.json").read_text() == before
    check_config(CONFIG, tmp_path)


def test_a_torn_config_does_not_stop_a_resume(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    check_config(CONFIG, tmp_path)  # none at all
    (tmp_path / "config.json").write_text('{"seed": 1, "st')
    check_config(CONFIG, tmp_path)
    assert "config.json is torn" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2}, "config.seed = 1, this one has 2"),
        ({"data": Data({"low": 1})}, "config.data.args = {}, this one has None"),
        ({"stage": "play"}, "config.stage = 'toy', this one has 'play'"),
    ],
)
def test_another_config_is_refused_but_for_what_may_change(
    tmp_path: pathlib.Path, changes: dict[str, Any], message: str
):
    write_config(CONFIG, tmp_path)
    with pytest.raises(UserError, match=message):
        check_config(dataclasses.replace(CONFIG, **changes), tmp_path)
    check_config(dataclasses.replace(CONFIG, steps=9, eval=Eval(1)), tmp_path)


def test_keys_that_a_config_lacks_have_their_defaults(tmp_path: pathlib.Path):
    """As a config.json of format 1 does, or one that was written before a key was there."""
    (tmp_path / "config.json").write_text('{"seed": 1, "stage": "toy", "steps": 3}')
    check_config(CONFIG, tmp_path)
    with pytest.raises(UserError, match="config.data.length = 8, this one has 4"):
        check_config(dataclasses.replace(CONFIG, data=Data(length=4)), tmp_path)


def test_an_example_of_any_source_is_one_of_the_runs_source(tmp_path: pathlib.Path):
    """Examples had no source before version 0.2.0."""
    example = Example("What is 1 + 2?", "1 + 2 = 3", "3")
    bound = dataclasses.replace(example, source="addition")
    task = lambda example: Asking(TaskConfig("addition", example=example))
    for saved, asked in ((example, bound), (bound, example)):
        write_config(task(saved), tmp_path)
        check_config(task(asked), tmp_path)
    with pytest.raises(UserError, match="config.data.example.source = 'addition', this one has 'jsonl'"):
        check_config(task(dataclasses.replace(example, source="jsonl")), tmp_path)


def test_the_change_of_a_run_with_a_reward_of_its_own(tmp_path: pathlib.Path):
    evaluations = [
        {"step": step, "eval/words/problems": 8, "eval/words/brevity": value, "eval/words/brevity_stderr": 0.05}
        | {"eval/words/format_rate": value, "eval/words/format_rate_stderr": 0.1}
        for step, value in ((0, 0.25), (4, 0.75))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evaluations))
    first, second = describe_change(tmp_path, "words")
    assert first == {
        "8 held-out problems": "format, sampled",
        "before (step 0)": "25.0% ± 10.0",
        "after (step 4)": "75.0% ± 10.0",
        "change": "+50.0",
    }
    assert [*second.values()] == ["brevity, sampled", "0.25 ± 0.05", "0.75 ± 0.05", "+0.5"]
