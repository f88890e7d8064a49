"""GRPO runs of a tiny model: they learn, write what the contract says, resume bit for bit, are the same on a mesh."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from r1jax.core.config import apply_overrides, load_config
from r1jax.core.errors import UserError
from r1jax.core.metrics import read_rows
from r1jax.core.sharding import make_mesh, use_mesh
from r1jax.core.structs import Sampling
from r1jax.stages.grpo import Run
from r1jax.stages.grpo_config import RolloutConfig, read_config
from tests.stages.letters import HANG

CONFIG = pathlib.Path(__file__).with_name("tiny_grpo.py")
ROOT = CONFIG.parents[2]
STEPS = 20
TIMED = ("time/", "step_time", "tokens_per_second", "mfu")  # what may differ between runs of the same steps

METRICS = """loss reward reward_std rewards/letters_reward/mean rewards/letters_reward/std rewards/number_reward/mean
rewards/number_reward/std frac_reward_zero_std entropy clip_ratio/low_mean clip_ratio/high_mean clip_ratio/region_mean
completions/mean_length completions/clipped_ratio sampling/sampling_logp_difference/mean
sampling/sampling_logp_difference/max sampling/importance_sampling_ratio/min sampling/importance_sampling_ratio/mean
sampling/importance_sampling_ratio/max grad_norm learning_rate num_tokens step_time time/rollout time/reward time/train
rollout/tokens_per_second train/tokens_per_second mfu""".split()
EVAL_METRICS = "pass@1 pass@1_stderr greedy lenient format_rate".split()

Rows = list[dict[str, Any]]


def train(workdir: pathlib.Path, model: pathlib.Path, devices: int = 1, **changes: Any) -> Rows:
    """Runs the tiny config in this process with `a__b=value` as `config.a.b`; the rows of metrics.jsonl."""
    overrides = {key.replace("__", "."): str(value) for key, value in changes.items()}
    config = apply_overrides(load_config(str(CONFIG)), {"model.path": str(model), **overrides})
    settings = read_config(config)
    with use_mesh(make_mesh(settings.mesh, jax.devices()[:devices])):
        Run(settings, config, workdir).train()
    return read_rows(workdir / "metrics.jsonl")


def read_params(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """The parameters of the newest checkpoint by path."""
    newest = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda folder: int(folder.name))
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(newest.resolve() / "state")
    leaves = jax.tree_util.tree_leaves_with_path(state["params"])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def untimed(rows: Rows) -> Rows:
    return [{key: row[key] for key in row if not any(part in key for part in TIMED)} for row in rows]


def completions(workdir: pathlib.Path) -> list[str]:
    return [row["completion"] for row in read_rows(workdir / "samples.jsonl")]


# --- One run, looked at from all sides ---


@pytest.fixture(scope="module")
def learned(tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of a run that has time to learn; it evaluates in the middle and saves twice."""
    workdir = tmp_path_factory.mktemp("learned") / "run"
    train(workdir, tiny_model, steps=STEPS, eval__every_steps=10, checkpoint__every_steps=10)
    return workdir


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
    fields = ["step", "prompt", "completion", "reward", "rewards", "advantage", "length", "finish_reason"]
    for sample in samples:
        assert list(sample) == fields
        assert set(sample["rewards"]) == {"letters_reward", "number_reward"}
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
    assert config["model"]["path"] == str(tiny_model) and config["steps"] == STEPS
    assert config["rewards"]["letters"]["weight"] == 2.0
    assert "<html" in (learned / "report.html").read_text("utf-8")
    assert list((learned / "tensorboard").glob("events*"))
    assert sorted(int(folder.name) for folder in (learned / "checkpoints").glob("[0-9]*")) == [10, STEPS]


# --- Starting again ---


def test_a_finished_run_does_nothing_and_says_so(
    learned: pathlib.Path, tiny_model: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    workdir = shutil.copytree(learned, tmp_path / "run")
    before = {name: (workdir / name).read_bytes() for name in ("metrics.jsonl", "samples.jsonl", "config.json")}
    with caplog.at_level("INFO"):
        train(workdir, tiny_model, steps=STEPS, eval__every_steps=10, checkpoint__every_steps=10)
    assert before == {name: (workdir / name).read_bytes() for name in before}
    assert f"from step {STEPS} of {STEPS}" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"config\.seed = 0, this one has 1"),
        ({"optimizer__learning_rate": 1e-4}, r"config\.optimizer\.learning_rate = 0\.002, this one has 0\.0001"),
        ({"rewards": '{"number_reward": 1.0}'}, r"config\.rewards\."),
    ],
)
def test_a_workdir_of_another_config_is_refused(
    learned: pathlib.Path, tiny_model: pathlib.Path, changes: dict[str, Any], message: str
):
    before = (learned / "metrics.jsonl").read_bytes(), (learned / "config.json").read_bytes()
    with pytest.raises(UserError, match=message):
        train(learned, tiny_model, steps=STEPS, **changes)
    assert before == ((learned / "metrics.jsonl").read_bytes(), (learned / "config.json").read_bytes())


def start(model: pathlib.Path, workdir: pathlib.Path, **environment: str) -> subprocess.Popen:
    """`python -m r1jax.train` on one device, six steps with a checkpoint every two."""
    command = [sys.executable, "-m", "r1jax.train", f"--config={CONFIG}", f"--workdir={workdir}"]
    command += [f"--config.model.path={model}", "--config.steps=6", "--config.checkpoint.every_steps=2"]
    command += ["--config.update.updates_per_step=2", "--config.eval.every_steps=3"]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", **environment}
    log = open(workdir.with_suffix(".log"), "ab")
    with log:
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **flags}, stdout=log, stderr=log)


def finish(process: subprocess.Popen, workdir: pathlib.Path) -> str:
    assert process.wait(600) == 0, workdir.with_suffix(".log").read_text()
    return workdir.with_suffix(".log").read_text()


def last_step(workdir: pathlib.Path) -> int:
    return max((row["step"] for row in read_rows(workdir / "metrics.jsonl")), default=-1)


def wait_for(condition: Any, process: subprocess.Popen, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def assert_same_run(one: pathlib.Path, other: pathlib.Path) -> None:
    """Bit-identical parameters, metrics (but timings) and samples."""
    assert (one / "samples.jsonl").read_bytes() == (other / "samples.jsonl").read_bytes()
    assert untimed(read_rows(one / "metrics.jsonl")) == untimed(read_rows(other / "metrics.jsonl"))
    expected = read_params(other)
    found = read_params(one)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].tobytes() == expected[name].tobytes(), name


@pytest.fixture(scope="module")
def uninterrupted(tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(start(tiny_model, workdir), workdir)
    return workdir


def test_killed_and_started_again_ends_bit_for_bit_the_same(
    tiny_model: pathlib.Path, uninterrupted: pathlib.Path, tmp_path: pathlib.Path
):
    """Killed in step 6, when step 5 is on file but the newest checkpoint is that of step 4."""
    workdir = tmp_path / "run"
    process = start(tiny_model, workdir, **{HANG: "6"})
    try:
        wait_for(lambda: last_step(workdir) == 5, process)
    finally:
        process.kill()
        process.wait()
    assert last_step(workdir) == 5
    said = finish(start(tiny_model, workdir), workdir)
    assert "from step 4 of 6" in said
    assert_same_run(workdir, uninterrupted)


@pytest.mark.slow
def test_killed_at_any_moment_again_and_again(
    tiny_model: pathlib.Path, uninterrupted: pathlib.Path, tmp_path: pathlib.Path
):
    """Also while a checkpoint is written and before the first one."""
    workdir, generator = tmp_path / "run", np.random.default_rng(0)
    for _ in range(8):
        process = start(tiny_model, workdir)
        begun = last_step(workdir)
        try:
            wait_for(lambda begun=begun, process=process: last_step(workdir) != begun or process.poll() == 0, process)
            time.sleep(generator.uniform(0, 1.0))
        finally:
            process.kill()
            process.wait()
    finish(start(tiny_model, workdir), workdir)
    assert_same_run(workdir, uninterrupted)


# --- Ways to run the same three steps ---


@pytest.fixture(scope="module")
def three_steps(tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("three") / "run"
    train(workdir, tiny_model)
    return workdir


def assert_close(found: Rows, expected: Rows, tolerance: float = 1e-4) -> None:
    for one, other in zip(untimed(found), untimed(expected), strict=True):
        assert one.keys() == other.keys()
        for name in other:
            assert one[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize(
    "changes",
    [
        {"update__micro_batch_size": 2, "update__completions_per_row": 1, "update__logits_chunk": 4},
        {"update__micro_batch_size": 32, "update__completions_per_row": 16, "model__scan_layers": True},
        {"rollout__slots": 5, "rollout__prefill_batch": 1, "model__remat": "full", "rollout__max_prompt_tokens": 40},
    ],
    ids=["small-batches-chunked", "one-batch-scanned", "few-slots-remat"],
)
def test_how_the_work_is_cut_does_not_matter(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path, three_steps: pathlib.Path, changes: dict[str, Any]
):
    rows = train(tmp_path / "run", tiny_model, **changes)
    assert completions(tmp_path / "run") == completions(three_steps)
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
    assert completions(tmp_path / "run") == completions(three_steps)
    assert_close(rows, read_rows(three_steps / "metrics.jsonl"))


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_several_updates_a_step(tiny_model: pathlib.Path, tmp_path: pathlib.Path, aggregation: str):
    """Old log-probs from the trainer and from the sampler are the same numbers, so both ways are one run."""
    changes = {"update__updates_per_step": 4, "loss__aggregation": aggregation, "optimizer__learning_rate": 1e-2}
    changes |= {"steps": 2, "data__eval_problems": 0}
    runs = {
        source: train(tmp_path / source, tiny_model, update__old_logprobs=source, **changes)
        for source in ("trainer", "sampler")
    }
    for row in runs["trainer"]:
        assert row["clip_ratio/region_mean"] > 0  # later updates are off-policy
        assert row["clip_ratio/region_mean"] == pytest.approx(row["clip_ratio/low_mean"] + row["clip_ratio/high_mean"])
        assert 0 < row["sampling/sampling_logp_difference/mean"] < 1e-5
    assert completions(tmp_path / "trainer") == completions(tmp_path / "sampler")
    for one, other in zip(runs["trainer"], runs["sampler"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)
    # The schedule counts updates: two of warm-up, then a fall to half over the other six; the row has the last one's.
    rates = [row["learning_rate"] for row in runs["trainer"]]
    assert rates == pytest.approx([1e-2 * (1 - 0.5 * 1 / 6), 1e-2 * (1 - 0.5 * 5 / 6)], rel=1e-5)


def test_kl_to_the_reference(tiny_model: pathlib.Path, tmp_path: pathlib.Path, three_steps: pathlib.Path):
    """Zero while the policy is the reference, positive later; its weight moves the loss and holds the policy back."""
    rows = train(tmp_path / "run", tiny_model, loss__kl_coefficient=5.0, log__samples_per_step=5)
    assert len(completions(tmp_path / "run")) == 3 * 5
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


# --- Mistakes, before any device ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"update.micro_batch_size": "12"}, "config.update.micro_batch_size = 12 must divide"),
        ({"update.completions_per_row": "3"}, "config.update.completions_per_row = 3 must divide"),
        ({"update.updates_per_step": "3"}, "config.update.updates_per_step = 3 must divide config.rollout.prompts_per"),
        ({"update.updates_per_step": "0"}, "config.update.updates_per_step must be at least 1, got 0"),
        ({"rollout.group_size": "1"}, "config.rollout.group_size must be at least 2 to compare answers, got 1"),
        ({"rollout.temperature": "0"}, "config.rollout.temperature must be positive to explore, got 0"),
        ({"rollout.slots": "0"}, "config.rollout.slots must be at least 1"),
        ({"update.old_logprobs": "samplr"}, "config.update.old_logprobs must be one of 'trainer', 'sampler'"),
        ({"loss.aggregation": "mean"}, "config.loss.aggregation must be one of"),
        ({"steps": "0"}, "config.steps must be at least 1, got 0"),
    ],
)
def test_impossible_combinations_are_named(changes: dict[str, str], message: str):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        read_config(apply_overrides(load_config(str(CONFIG)), changes))


def test_an_unknown_key_of_a_section_is_named():
    config = load_config(str(CONFIG))
    with config.unlocked():
        config.rollout.top_q = 0.5
    with pytest.raises(UserError, match=r'config\.rollout\.top_q is not a known key; did you mean "top_[kp]"'):
        read_config(config)


def test_sampling_of_a_run_is_that_of_its_config():
    rollout = RolloutConfig(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, max_new_tokens=3)
    assert rollout.sampling((2, 3)) == Sampling(0.7, 5, 0.9, 0.1, 3, (2, 3))
    assert dataclasses.replace(rollout, ignore_stop=True).sampling((2, 3)).stop_ids == ()
