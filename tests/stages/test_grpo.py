"""GRPO runs of a tiny model: they learn, write what the contract says, and are the same however the work is cut."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from r1jax.core.metrics import read_rows
from r1jax.rl.grpo_config import RolloutConfig
from r1jax.weights import load_pretrained
from tests.stages.conftest import LEARNING
from tests.stages.runs import Rows, read_completions, read_params, train, untimed
from tests.tiny_model import STOP_IDS

STEPS = LEARNING["steps"]
METRICS = """loss reward reward_std rewards/letters_reward/mean rewards/letters_reward/std rewards/number_reward/mean
rewards/number_reward/std frac_reward_zero_std entropy clip_ratio/low_mean clip_ratio/high_mean clip_ratio/region_mean
completions/mean_length completions/clipped_ratio sampling/sampling_logp_difference/mean
sampling/sampling_logp_difference/max sampling/importance_sampling_ratio/min sampling/importance_sampling_ratio/mean
sampling/importance_sampling_ratio/max grad_norm learning_rate num_tokens step_time time/rollout time/reward time/train
rollout/tokens_per_second train/tokens_per_second mfu""".split()
EVAL_METRICS = "pass@1 pass@1_stderr greedy lenient format_rate".split()


# --- One run, looked at from all sides ---


@pytest.fixture(scope="module")
def rows(learned: pathlib.Path) -> Rows:
    return read_rows(learned / "metrics.jsonl")


def test_reward_rises(rows: Rows):
    reward = [row["reward"] for row in rows[1:]]
    assert np.mean(reward[:2]) < 0.3
    assert np.mean(reward[-2:]) > 1.2  # of 2.0
    assert rows[-1]["entropy"] < rows[1]["entropy"] - 1


def test_metrics_have_the_names_of_the_contract(rows: Rows):
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    for row in rows[1:]:
        assert next(iter(row)) == "step"
        assert not set(METRICS) - set(row)
        assert "kl" not in row  # there is no reference
        assert all(isinstance(value, int | float) for value in row.values())
    for row in rows:
        is_due = row["step"] in (0, 10, STEPS)
        assert [f"eval/sums/{name}" in row for name in EVAL_METRICS] == [is_due] * len(EVAL_METRICS)
    assert not [key for key in rows[0] if key in METRICS]


def test_metrics_are_what_they_say(learned: pathlib.Path, rows: Rows):
    samples = read_rows(learned / "samples.jsonl")
    tokens = 0
    for row in rows[1:]:
        mine = [sample for sample in samples if sample["step"] == row["step"]]
        reward, length = (np.array([sample[key] for sample in mine]) for key in ("reward", "length"))
        groups = reward.reshape(4, 8)
        assert row["reward"] == pytest.approx(reward.mean())
        assert row["reward_std"] == pytest.approx(groups.std(axis=1, ddof=1).mean())
        assert row["frac_reward_zero_std"] == (groups.std(axis=1, ddof=1) < 1e-3).mean()
        letters = np.array([sample["rewards"]["letters_reward"] for sample in mine])
        assert row["rewards/letters_reward/mean"] == pytest.approx(letters.mean())
        assert row["rewards/letters_reward/std"] == pytest.approx(letters.std(ddof=1))
        assert row["completions/mean_length"] == length.mean()
        assert row["completions/clipped_ratio"] == np.mean([sample["finish_reason"] == "length" for sample in mine])
        assert row["grad_norm"] > 0 or row["frac_reward_zero_std"] == 1
        assert row["step_time"] == pytest.approx(sum(row[f"time/{part}"] for part in ("rollout", "reward", "train")))
        tokens += int(length.sum()) + sum(len(sample["prompt"]) for sample in mine)  # a byte is a token
        assert row["num_tokens"] == tokens


def test_the_sampler_agrees_with_the_trainer_at_every_step(rows: Rows):
    for row in rows[1:]:
        assert 0 < row["sampling/sampling_logp_difference/mean"] < 1e-5
        assert row["sampling/sampling_logp_difference/mean"] <= row["sampling/sampling_logp_difference/max"] < 1e-4
        ratios = [row[f"sampling/importance_sampling_ratio/{name}"] for name in ("min", "mean", "max")]
        assert ratios == sorted(ratios) and ratios == pytest.approx([1, 1, 1], abs=1e-4)


def test_purely_on_policy_nothing_is_clipped_and_the_loss_is_that_of_advantages(learned: pathlib.Path, rows: Rows):
    """With a ratio of 1 the token mean of the loss is minus the token mean of advantages."""
    samples = read_rows(learned / "samples.jsonl")
    for row in rows[1:]:
        assert row["clip_ratio/region_mean"] == row["clip_ratio/low_mean"] == row["clip_ratio/high_mean"] == 0
        mine = [sample for sample in samples if sample["step"] == row["step"]]
        total = sum(sample["advantage"] * sample["length"] for sample in mine)
        assert row["loss"] == pytest.approx(-total / sum(sample["length"] for sample in mine), abs=1e-6)


def test_learning_rate_follows_the_schedule(rows: Rows):
    rates = [row["learning_rate"] for row in rows[1:]]
    assert rates[:3] == pytest.approx([1e-3, 2e-3, 2e-3])
    assert rates[-1] == pytest.approx(2e-3 * (1 - 0.5 * 17 / 18), rel=1e-5)


def test_samples_have_the_fields_of_the_contract(learned: pathlib.Path):
    samples = read_rows(learned / "samples.jsonl")
    assert len(samples) == STEPS * 32
    fields = ["step", "prompt", "completion", "solution", "reward", "rewards", "rules"]
    fields += ["advantage", "length", "finish_reason"]
    for sample in samples:
        assert list(sample) == fields
        assert set(sample["rewards"]) == {"letters_reward", "number_reward"}
        assert sample["rules"]["number_reward"].startswith(("no number", "the last number: number "))
        assert sample["reward"] == pytest.approx(
            2 * sample["rewards"]["letters_reward"] + 0.5 * sample["rewards"]["number_reward"]
        )
        assert 1 <= sample["length"] <= 8 and sample["finish_reason"] in ("stop", "length")
        assert sample["finish_reason"] == "stop" or sample["length"] == 8
    assert {sample["finish_reason"] for sample in samples} == {"stop", "length"}
    groups = [samples[i : i + 8] for i in range(0, len(samples), 8)]
    for group in groups:
        assert len({sample["prompt"] for sample in group}) == 1
        assert sum(sample["advantage"] for sample in group) == pytest.approx(0, abs=1e-6)


def test_the_other_files_of_the_workdir(learned: pathlib.Path, tiny_model: pathlib.Path):
    config = json.loads((learned / "config.json").read_text())
    assert config["model"]["name"] == str(tiny_model) and config["steps"] == STEPS
    assert config["rewards"]["letters"]["weight"] == 2.0
    assert "<html" in (learned / "report.html").read_text("utf-8")
    assert list((learned / "tensorboard").glob("events*"))
    assert sorted(int(folder.name) for folder in (learned / "checkpoints").glob("[0-9]*")) == [10, STEPS]


# --- Ways to run the same three steps ---


def test_the_workdir_is_a_model(learned: pathlib.Path, tiny_model: pathlib.Path):
    model, tokenizer = load_pretrained(learned)
    before, _ = load_pretrained(tiny_model)
    assert model.config == before.config and tokenizer is not None and tokenizer.eos_ids == STOP_IDS
    embedding = np.asarray(model.embed.embedding[...])
    np.testing.assert_array_equal(embedding, read_params(learned)["['embed']['embedding']"])
    assert not np.array_equal(embedding, before.embed.embedding[...])


@pytest.fixture(scope="module")
def three_steps(tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("three") / "run"
    train(workdir, tiny_model)
    return workdir


def assert_close(found: Rows, expected: Rows, tolerance: float = 1e-4) -> None:
    for one, other in zip(untimed(found), untimed(expected), strict=True):
        assert one.keys() == other.keys()
        for name in other.keys() - {"flops"}:  # useful ones: a prompt that is shared is computed once
            assert one[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize(
    "changes",
    [
        {"train__micro_batch_size": 2, "train__completions_per_row": 1, "train__logits_chunk": 4},
        {"train__micro_batch_size": 32, "train__completions_per_row": 16, "model__scan_layers": True},
        {"rollout__slots": 5, "rollout__prefill_batch": 1, "model__remat": "full", "rollout__max_prompt_tokens": 40},
        {"train__share_prompts": False, "train__micro_batch_size": 4},
    ],
    ids=["small-batches-chunked", "one-batch-scanned", "few-slots-remat", "prompts-apart"],
)
def test_how_the_work_is_cut_does_not_matter(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path, three_steps: pathlib.Path, changes: dict[str, Any]
):
    rows = train(tmp_path / "run", tiny_model, **changes)
    assert read_completions(tmp_path / "run") == read_completions(three_steps)
    assert_close(rows, read_rows(three_steps / "metrics.jsonl"))


@pytest.mark.parametrize(
    "mesh",
    [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}],
    ids=["data8", "data2-fsdp2-tensor2"],
)
def test_eight_devices_are_one(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path, three_steps: pathlib.Path, mesh: dict[str, int]
):
    changes = {f"mesh__{axis}": size for axis, size in mesh.items()}
    rows = train(tmp_path / "run", tiny_model, devices=8, **changes)
    assert read_completions(tmp_path / "run") == read_completions(three_steps)
    assert_close(rows, read_rows(three_steps / "metrics.jsonl"))


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_several_updates_a_step(tiny_model: pathlib.Path, tmp_path: pathlib.Path, aggregation: str):
    """Old log-probs from the trainer and from the sampler are the same numbers, so both ways are one run."""
    changes = {"train__updates_per_step": 4, "loss__aggregation": aggregation, "optimizer__learning_rate": 1e-2}
    changes |= {"steps": 2, "data__eval_problems": 0}
    changes |= {"optimizer__epsilon": 1e-3}  # far over rounding: at 1e-8 AdamW lifts noise of 1e-8 to a full update
    runs = {
        source: train(tmp_path / source, tiny_model, train__old_logprobs=source, **changes)
        for source in ("trainer", "sampler")
    }
    for row in runs["trainer"]:
        assert row["clip_ratio/region_mean"] > 0  # later updates are off-policy
        assert row["clip_ratio/region_mean"] == pytest.approx(row["clip_ratio/low_mean"] + row["clip_ratio/high_mean"])
        assert 0 < row["sampling/sampling_logp_difference/mean"] < 1e-5
    assert read_completions(tmp_path / "trainer") == read_completions(tmp_path / "sampler")
    for one, other in zip(runs["trainer"], runs["sampler"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    # The schedule counts updates: two of warm-up, then a fall to half over the other six; the row has the last one's.
    rates = [row["learning_rate"] for row in runs["trainer"]]
    assert rates == pytest.approx([1e-2 * (1 - 0.5 * 1 / 6), 1e-2 * (1 - 0.5 * 5 / 6)], rel=1e-5)


def test_kl_to_the_reference(tiny_model: pathlib.Path, tmp_path: pathlib.Path, three_steps: pathlib.Path):
    """Zero while the policy is the reference, positive later; its weight moves the loss and holds the policy back."""
    rows = train(tmp_path / "run", tiny_model, loss__kl_coefficient=5.0, log__samples_per_step=5)
    assert len(read_completions(tmp_path / "run")) == 3 * 5
    kl = [row["kl"] for row in rows[1:]]
    assert kl[0] == pytest.approx(0, abs=1e-9)
    assert 1e-4 < kl[1] and 1e-4 < kl[2]
    free = read_rows(three_steps / "metrics.jsonl")
    assert rows[1]["grad_norm"] == pytest.approx(free[1]["grad_norm"], rel=1e-4)
    assert rows[2]["loss"] == pytest.approx(5.0 * kl[1], rel=0.05)  # advantages sum to about 0
    assert rows[2]["grad_norm"] != pytest.approx(free[2]["grad_norm"], rel=1e-2)


def test_groups_without_spread_teach_nothing(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    rewards = '{"same": {"function": "tests.stages.letters:constant_reward"}}'
    changes = {"steps": 1, "rewards": rewards, "data__eval_problems": 0, "log__samples_per_step": 1000}
    rows = train(tmp_path / "run", tiny_model, **changes)
    (row,) = rows  # without held-out problems there is no row of step 0
    assert (row["reward"], row["reward_std"], row["frac_reward_zero_std"]) == (1.0, 0.0, 1.0)
    assert row["loss"] == row["grad_norm"] == 0
    assert 0 < row["sampling/sampling_logp_difference/mean"] < 1e-5 and row["entropy"] > 3
    samples = read_rows(tmp_path / "run" / "samples.jsonl")
    assert [sample["advantage"] for sample in samples] == [0.0] * 32


@pytest.mark.parametrize("updates", [1, 4])
def test_a_wrong_temperature_of_the_sampler_raises_the_alarm(
    tiny_model: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    updates: int,
):
    """Also where the old log-probs are the sampler's own."""
    right = RolloutConfig.sampling
    wrong = lambda rollout, stop_ids: dataclasses.replace(right(rollout, stop_ids), temperature=1.1)
    monkeypatch.setattr(RolloutConfig, "sampling", wrong)
    changes = {"steps": 1, "data__eval_problems": 0, "train__old_logprobs": "sampler"}
    (row,) = train(tmp_path / "run", tiny_model, train__updates_per_step=updates, **changes)
    assert row["sampling/sampling_logp_difference/mean"] > 1e-2
    assert "the sampler's log-probs differ from the trainer's" in caplog.text


def test_narrow_parameters_learn(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    """bfloat16 parameters, float32 moments and copies; what is saved is what goes on."""
    changes = {"model__param_dtype": "bfloat16", "data__eval_problems": 0, "checkpoint__every_steps": 2}
    rows = train(tmp_path / "whole", tiny_model, **changes)
    train(tmp_path / "parts", tiny_model, steps=2, **changes)
    again = train(tmp_path / "parts", tiny_model, **changes)
    assert untimed(again) == untimed(rows)
    found, expected = read_params(tmp_path / "parts"), read_params(tmp_path / "whole")
    assert {str(value.dtype) for value in expected.values()} == {"bfloat16"}
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)
