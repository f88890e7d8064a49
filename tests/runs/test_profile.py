"""Profiles of steps: which are traced, what lies in the folder, and that the split of a step sums to its time."""

import gzip
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from r1jax.core.errors import UserError
from r1jax.core.metrics import read_rows
from r1jax.eval.time_split import read_split
from r1jax.runs.loop import Loop
from r1jax.runs.model_setup import CheckpointConfig, LogConfig
from r1jax.runs.profile import STEP, ProfileConfig, _Span, clean_name, share_time
from tests.runs.test_loop import Counter, Settings, run
from tests.stages.runs import train


def profile(workdir: Path, steps: str, stage: Counter | None = None) -> None:
    log, checkpoint = LogConfig(tensorboard=False, show_every_steps=0), CheckpointConfig(every_steps=2)
    Loop(Settings(), workdir, 6, 0, checkpoint, log, profile=ProfileConfig(steps)).run(stage or Counter())


def read_steps(workdir: Path) -> list[dict[str, Any]]:
    return json.loads((workdir / "profile" / "split.json").read_text())["steps"]


def read_perfetto(workdir: Path) -> list[dict[str, Any]]:
    (file,) = workdir.glob("profile/plugins/profile/*/perfetto_trace.json.gz")
    with gzip.open(file) as stream:
        return json.load(stream)["traceEvents"]


@pytest.mark.parametrize("steps", ["10", "0:3", "3:3", "4:2", "a:b", "1:2:3", " 1:2"])
def test_a_wrong_range_is_named(steps: str) -> None:
    with pytest.raises(UserError, match=r"config.profile.steps must be .* FIRST:END"):
        ProfileConfig(steps)
    assert list(ProfileConfig("10:12").range) == [10, 11] and not ProfileConfig().range


def test_a_moment_is_shared_by_what_runs_then() -> None:
    spans = [_Span(0, 40, "a"), _Span(20, 60, "a"), _Span(50, 70, "b"), _Span(90, 200, "c")]
    parts = share_time(10, 100, spans)
    assert {name: round(1e9 * seconds) for name, seconds in parts.items()} == {"a": 45, "b": 15, "host": 20, "c": 10}
    assert share_time(0, 5e9, []) == {"host": 5.0}


def test_names_of_programs() -> None:
    assert [clean_name(x) for x in ("jit__accumulate(12)", "jit_decode", "pjit")] == ["accumulate", "decode", "pjit"]


def test_a_run_traces_its_steps_and_goes_on(tmp_path: Path) -> None:
    big = jax.jit(lambda x: x @ x)

    def work(step: int) -> None:
        big(jnp.ones((256, 256))).block_until_ready()

    profile(tmp_path, "3:5", Counter(on_step=work))
    assert [step["step"] for step in read_steps(tmp_path)] == [3, 4]
    for step in read_steps(tmp_path):
        assert sum(step["parts"].values()) == pytest.approx(step["seconds"], rel=1e-3)
    marks = [event for event in read_perfetto(tmp_path) if event.get("name") == STEP]
    assert [int(mark["args"]["step_num"]) for mark in marks] == [3, 4]
    assert [*tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")]
    assert "where the time of a traced step went" in (tmp_path / "report.html").read_text()


def test_a_trace_ends_with_the_run(tmp_path: Path) -> None:
    profile(tmp_path / "long", "5:100")
    assert [step["step"] for step in read_steps(tmp_path / "long")] == [5, 6]
    run(tmp_path / "none")
    assert not (tmp_path / "none" / "profile").exists()


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_the_split_of_a_grpo_step_sums_to_its_time(devices: int, tiny_model: Path, tmp_path: Path) -> None:
    train(tmp_path, tiny_model, devices, profile__steps="2:4", train__micro_batch_size=4)
    rows = read_rows(tmp_path / "metrics.jsonl")
    split = read_split(tmp_path, rows)
    assert split is not None and split["steps"] == "2 to 3"
    assert split["total"] == pytest.approx(split["step_time"], rel=0.03)
    assert {"decode", "accumulate", "apply", "host"} <= {part["name"] for part in split["parts"]}
    assert [int(e["args"]["step_num"]) for e in read_perfetto(tmp_path) if e.get("name") == STEP] == [2, 3]
