"""Steps that do not wait for their longest completions: ages, log-probs, and runs that are stopped in between."""

import pathlib
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.core.metrics import read_rows
from tests.stages.letters import HANG
from tests.stages.runs import CONFIG, assert_same_run, last_step, read_settings, start, train
from tests.stages.test_resume import finish, wait_for

LIVE: dict[str, Any] = {
    "steps": 6,
    "rollout__max_staleness": 2,
    "rollout__max_new_tokens": 40,
    "rollout__slots": 40,
    "loss__importance_correction": "token_truncate",
    "data__eval_problems": 0,
    "log__tensorboard": False,
}


def test_no_token_is_older_than_allowed(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    rows = train(tmp_path / "run", tiny_model, **LIVE)
    assert len(rows) == 6
    ages = [row["off_policy/staleness/max"] for row in rows]
    assert ages[0] == 0 and max(ages) == 2
    for row in rows:
        shares = [row.get(f"off_policy/share/{age}", 0.0) for age in range(3)]
        assert sum(shares) == pytest.approx(1)
        assert row["off_policy/staleness/mean"] == pytest.approx(shares[1] + 2 * shares[2])
        if shares[0]:
            assert row["sampling/sampling_logp_difference/max"] < 1e-4
        assert row["grad_norm"] > 0 and row["time/idle"] >= 0
    assert any(row["sampling/importance_sampling_ratio/max"] > 1.001 for row in rows)  # of older weights
    samples = read_rows(tmp_path / "run" / "samples.jsonl")
    assert [sum(sample["step"] == step for sample in samples) for step in range(1, 7)] == [32] * 6
    assert len({sample["prompt"] for sample in samples}) == 24


@pytest.mark.slow
def test_a_run_that_is_killed_ends_with_the_same_bits(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    """Killed in step 5, when the newest checkpoint is that of step 3, in which unfinished completions are kept."""
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in LIVE.items()]
    flags.append("--config.checkpoint.every_steps=3")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(tiny_model, whole, *flags), whole)
    process = start(tiny_model, killed, *flags, **{HANG: "5"})
    try:
        wait_for(lambda: last_step(killed) == 4, process)
    finally:
        process.kill()
        process.wait()
    assert "from step 3 of 6" in finish(start(tiny_model, killed, *flags), killed)
    assert_same_run(killed, whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss__importance_correction": "none"}, "needs config.loss.importance_correction"),
        ({"dynamic_sampling__max_rounds": 2}, "config.dynamic_sampling.max_rounds"),
        ({"rollout__temperature_schedule": "((1, 0.5),)"}, "config.rollout.temperature_schedule"),
        ({"rollout__max_staleness": -1}, "must be from 0"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_model: pathlib.Path, changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        read_settings(CONFIG, **{"model__name": tiny_model, **LIVE, **changes})
