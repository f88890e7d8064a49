"""Whole runs in several real processes against one: the same metrics, samples and checkpoints; one of them speaks."""

import os
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from r1jax.core.metrics import read_rows
from tests.core.test_distributed import free_port
from tests.environment import ROOT, make_xla_flags
from tests.stages.episodes import EPISODES
from tests.stages.runs import CONFIG, Rows, read_completions, start, untimed

DEVICES = 4
COPIES = f"--config.mesh.data={DEVICES}"
PREFERENCES = f"{CONFIG.parent}/preferences/tiny_preferences.py"
STAGES = {
    "grpo": (CONFIG, ["--config.eval.every_steps=0", COPIES]),
    "sft": (CONFIG.with_name("tiny_sft.py"), ["--config.train.micro_batch_size=2", COPIES]),
    "episodes": (CONFIG, [COPIES, *(f"--config.{k.replace('__', '.')}={v}" for k, v in EPISODES.items())]),
    "dpo": (PREFERENCES, ["--config.train.micro_batch_size=2", COPIES]),
    "reward_model": (f"{PREFERENCES}:reward_model", ["--config.train.micro_batch_size=2", COPIES]),
    # by a reward model that the test trains first
    "learned": (f"{CONFIG.parent}/preferences/tiny_learned.py", ["--config.log.samples_per_step=-1", COPIES]),
    "ppo": (CONFIG, ["--config.loss.preset=ppo", "--config.eval.every_steps=0", COPIES]),
    # weights that are split in training lie over two neighbours in rollouts, which are in different processes of four
    "rollouts": (CONFIG, ["--config.mesh.data=1", "--config.mesh.fsdp=4", "--config.rollout.mesh=tensor=2"]),
}


def run_processes(stage: str, count: int, steps: int, model: pathlib.Path, workdir: pathlib.Path) -> Rows:
    """The run up to so many steps on four devices in all, in `count` processes of equally many; its rows so far."""
    config, flags = STAGES[stage]
    if stage == "learned":
        config = f"{config}:scores={workdir.parent / 'scores'}"
    environments = [{"XLA_FLAGS": make_xla_flags(DEVICES // count)} for _ in range(count)]
    if count > 1:
        joined = {"R1JAX_COORDINATOR": f"localhost:{free_port()}", "R1JAX_PROCESS_COUNT": str(count)}
        environments = [{**own, **joined, "R1JAX_PROCESS_ID": str(index)} for index, own in enumerate(environments)]
    common = [f"--config.steps={steps}", "--config.checkpoint.every_steps=1"]
    processes: list[subprocess.Popen] = [
        start(model, workdir, *common, *flags, config=config, **environment) for environment in environments
    ]
    try:
        for process in processes:
            assert process.wait(timeout=600) == 0, workdir.with_suffix(".log").read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
    return read_rows(workdir / "metrics.jsonl")


def assert_same(rows: Rows, expected: Rows) -> None:
    rows, expected = untimed(rows), untimed(expected)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert set(row) == set(other)
        for key, value in other.items():
            np.testing.assert_allclose(row[key], value, rtol=1e-5, atol=1e-5, err_msg=f"step {row['step']}: {key}")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_several_processes_are_one_run(stage: str, tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Two begin and four go on, one begins and goes on; then the first is taken over by one, and the other by two."""
    run = lambda count, steps, name: run_processes(stage, count, steps, tiny_model, tmp_path / name)
    if stage == "learned":
        run_processes("reward_model", 1, 2, tiny_model, tmp_path / "scores")
    assert_same(run(2, 2, "many"), run(1, 2, "one"))
    assert_same(run(4, 3, "many"), run(1, 3, "one"))
    assert_same(run(1, 4, "many"), run(2, 4, "one"))
    if stage in ("grpo", "learned", "ppo", "rollouts"):
        assert read_completions(tmp_path / "many") == read_completions(tmp_path / "one")


def run_commands(name: str, *commands: list[str]) -> list[tuple[int, str, str]]:
    """`python -m r1jax.NAME` with each command's arguments, as one run; code, stdout and stderr of each process."""
    shared = {"XLA_FLAGS": make_xla_flags(1), "R1JAX_COORDINATOR": f"localhost:{free_port()}"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"r1jax.{name}", *arguments],
            cwd=ROOT,
            env={**os.environ, **shared, "R1JAX_PROCESS_COUNT": str(len(commands)), "R1JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, arguments in enumerate(commands)
    ]
    try:
        with ThreadPoolExecutor() as pool:
            outcomes = list(pool.map(lambda process: process.communicate(timeout=600), processes))
        return [(process.returncode, *texts) for process, texts in zip(processes, outcomes, strict=True)]
    finally:
        for process in processes:
            process.kill()


def only_words(text: str) -> list[str]:
    """Lines without those of libraries below Python."""
    return [line for line in text.splitlines() if line and "[Gloo]" not in line and not re.match(r"[WEI]\d{4} ", line)]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train grpo", "train sft", "generate", "evaluate"])
def test_the_first_process_alone_shows_what_a_command_shows(
    command: str, tiny_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    name, _, stage = command.partition(" ")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "1+1=", "solution": "2"}\n{"prompt": "1+2=", "solution": "3"}\n')
    out = f"--output={tmp_path / 'out.json'}"
    if name == "train":
        config, flags = STAGES[stage]
        flags = [
            *(flag for flag in flags if flag != COPIES),
            f"--config={config}",
            f"--config.model.name={tiny_model}",
            f"--workdir={tmp_path / 'run'}",
        ]
        flags += ["--config.mesh.data=2", "--config.steps=1"]
    else:
        flags = [f"--model={tiny_model}", out, "--max_new_tokens=4", "--batch_size=2"]
        flags += (
            [f"--prompts={prompts}"] if name == "generate" else [f"--benchmarks=jsonl={prompts}", "--template=plain"]
        )
    (code, first, log), (other_code, other, other_log) = run_commands(name, flags, flags)
    assert code == other_code == 0, log + other_log
    shown = {"train": "step 1/1", "generate": "rows 2/2", "evaluate": "problems 2/2"}[name]
    assert shown in first and only_words(other) == []
    assert len(only_words(other_log)) == 1 and "process 2 of 2 is" in other_log, other_log
    assert " 2 processes, 2 x cpu, 1 each: " in log
    if name == "evaluate":
        assert "scores" in first
    if name == "train":
        phases = (
            r"first step after [\d.]+ s: connect [\d.]+, load [\d.]+, restore [\d.]+, evaluate [\d.]+, step [\d.]+, "
        )
        assert re.search(phases + r"compile [\d.]+ \(\d+ programs\)", log) and "report: " in log
