"""GRPO runs on eight devices are the same whatever the layout of their rollouts, also where it changes on the way."""

import pathlib
from typing import Any

import numpy as np
import pytest

from tests.stages.runs import Rows, read_completions, train, untimed

STEPS = 2
COMMON = {"steps": STEPS, "mesh__data": 1, "checkpoint__every_steps": 1, "log__tensorboard": False}
DENSE = {**COMMON, "mesh__fsdp": 8}
LATENT = {
    **COMMON,
    "mesh__fsdp": 2,
    "mesh__expert": 4,
    "model__preset": "tiny_deepseek_v3",
    "model__sizes": {"vocab_size": 264, "num_layers": 2},
    "model__name": "",
}


def assert_same(rows: Rows, expected: Rows) -> None:
    """But for timings, and for what only experts in a layout of their own have."""
    for row, other in zip(untimed(rows), untimed(expected), strict=True):
        assert set(row) - {"rollout/further_turns"} == set(other) - {"rollout/further_turns"}
        for key in set(other) - {"rollout/further_turns"}:
            np.testing.assert_allclose(row[key], other[key], rtol=1e-5, atol=1e-5, err_msg=f"{row['step']}: {key}")


@pytest.fixture(scope="module", params=[DENSE, pytest.param(LATENT, marks=pytest.mark.slow)], ids=["dense", "latent"])
def as_in_training(
    request: pytest.FixtureRequest, tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], pathlib.Path, Rows]:
    """(settings, workdir, rows) of a run whose rollouts have the layout of training."""
    workdir = tmp_path_factory.mktemp("same") / "run"
    return request.param, workdir, train(workdir, tiny_model, 8, rollout__mesh="same", **request.param)


@pytest.mark.parametrize("mesh", ["auto", pytest.param("fsdp=2,context=2,tensor=2", marks=pytest.mark.slow)])
def test_runs_are_equal_whatever_the_layout_of_rollouts(
    as_in_training: Any, tiny_model: pathlib.Path, tmp_path: pathlib.Path, mesh: str
) -> None:
    changes, workdir, expected = as_in_training
    rows = train(tmp_path / "run", tiny_model, 8, rollout__mesh=mesh, **changes)
    assert_same(rows, expected)
    assert read_completions(tmp_path / "run") == read_completions(workdir)
    assert all("time/weights" in row for row in rows[1:]) and not any("time/weights" in row for row in expected)
    assert all(row["sampling/sampling_logp_difference/mean"] < 1e-5 for row in rows[1:])
    assert all(row["step_time"] == pytest.approx(sum_of_parts(row)) for row in rows[1:])


def sum_of_parts(row: dict[str, Any]) -> float:
    return sum(row[f"time/{part}"] for part in ("weights", "rollout", "reward", "train"))


@pytest.mark.slow
def test_a_run_resumes_onto_another_layout_of_rollouts(
    as_in_training: Any, tiny_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    changes, _, expected = as_in_training
    for steps, mesh in ((1, "auto"), (STEPS, "tensor=2,data=-1")):
        rows = train(tmp_path / "run", tiny_model, 8, **{**changes, "steps": steps, "rollout__mesh": mesh})
    assert_same(rows[-1:], expected[-1:])


def test_narrow_rollouts_beside_wide_training_say_their_difference(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """With the importance weights of trainer against sampler."""
    changes = {"rollout__dtype": "bfloat16", "loss__importance_correction": "token_truncate", "steps": 1}
    row = train(tmp_path / "run", tiny_model, **changes)[-1]
    assert 1e-5 < row["sampling/sampling_logp_difference/mean"] < 0.1
    assert 0.9 < row["correction/weight_mean"] < 1.1 and "time/weights" in row
