"""PPO on the tiny model: it learns, resumes bit for bit, and is the same on any mesh and with adapters."""

import pathlib
from typing import Any

import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.core.metrics import read_rows
from tests.stages.runs import Rows, assert_same_run, read_params, train

SHORT = {"data__eval_problems": 0, "log__tensorboard": False}
PPO: dict[str, Any] = {
    "loss__preset": "ppo",
    "loss__aggregation": "token",
    "loss__kl_coefficient": 0.02,
    "loss__kl_in": "reward",
    "loss__kl_estimator": "k1",
    "train__updates_per_step": 2,
    "critic__optimizer__learning_rate": 3e-3,
    "checkpoint__every_steps": 2,
    "optimizer__schedule": "constant",
    **SHORT,
}
STEPS = 6


@pytest.fixture(scope="module")
def finished(tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("ppo") / "run"
    train(workdir, tiny_model, steps=STEPS, **PPO)
    return workdir


def test_policy_and_critic_learn(finished: pathlib.Path) -> None:
    rows = read_rows(finished / "metrics.jsonl")
    assert rows[-1]["rewards/letters_reward/mean"] > rows[0]["rewards/letters_reward/mean"] + 0.05
    assert rows[-1]["value/explained_variance"] > rows[0]["value/explained_variance"]
    assert rows[-1]["value/loss"] < rows[0]["value/loss"] and all(row["value/grad_norm"] > 0 for row in rows)
    assert abs(rows[0]["kl"]) < 1e-5 < abs(rows[-1]["kl"]) and all(0 <= row["value/clip_ratio"] <= 1 for row in rows)
    assert rows[0]["clip_ratio/region_mean"] >= 0 and rows[0]["sampling/sampling_logp_difference/mean"] < 1e-5


def test_stopped_and_started_again_it_ends_bit_for_bit_the_same(
    finished: pathlib.Path, tiny_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for steps in (2, STEPS):
        train(tmp_path / "run", tiny_model, steps=steps, **PPO)
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"train__micro_batch_size": 4}, id="small micro-batches"),
        pytest.param(
            {"mesh__fsdp": 2, "mesh__data": 2, "mesh__tensor": 2, "train__micro_batch_size": 4},
            id="mesh",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_how_it_is_computed_changes_nothing(
    changes: dict[str, Any], finished: pathlib.Path, tiny_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    devices = 8 if "mesh__fsdp" in changes else 1
    rows: Rows = train(tmp_path / "run", tiny_model, devices, steps=1, **{**PPO, **changes})
    expected = train(tmp_path / "one", tiny_model, steps=1, **PPO)
    for name in ("loss", "grad_norm", "value/loss", "value/grad_norm", "value/mean", "entropy"):
        assert rows[0][name] == pytest.approx(expected[0][name], rel=1e-5, abs=1e-6), name


@pytest.mark.slow
def test_adapters_of_both_are_trained_and_saved(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    rows = train(tmp_path / "run", tiny_model, steps=2, **{**PPO, "lora__rank": 2})
    assert all(np.isfinite(row["value/loss"]) for row in rows)
    assert {name.rpartition("[")[2] for name in read_params(tmp_path / "run")} == {"'a']", "'b']"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"critic__decay": 2}, r"config\.critic\.decay must be from 0 to 1"),
        ({"reference__every_updates": 2}, r"config\.reference\.every_updates must be 0 with a critic"),
        ({"dynamic_sampling__max_rounds": 2}, r"config\.dynamic_sampling\.max_rounds must be 1 with a critic"),
        ({"loss__scale": "group"}, r"config\.loss\.scale must be 'none' with a critic"),
    ],
)
def test_a_mistake_is_named(
    changes: dict[str, Any], message: str, tiny_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(tmp_path, tiny_model, **{**PPO, **changes})
