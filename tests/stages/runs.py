"""Runs of the tiny configs beside this file, in this process or as the command, and what they leave behind."""

import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from r1jax.core.checkpoint import SavedArrays, newest_checkpoint
from r1jax.core.config import load_config
from r1jax.core.metrics import read_rows
from r1jax.core.sharding import make_mesh, use_mesh
from r1jax.stages.grpo import GRPORun
from r1jax.stages.preferences.dpo import DPORun
from r1jax.stages.preferences.reward_model import RewardModelRun
from r1jax.stages.registry import resolve_run
from r1jax.stages.sft import SFTRun
from tests.environment import make_xla_flags

CONFIG = pathlib.Path(__file__).with_name("tiny_grpo.py")
ROOT = CONFIG.parents[2]
TIMED = ("time/", "step_time", "tokens_per_second", "mfu")  # what may differ between runs of the same steps

RUNS: dict[str, Any] = {"grpo": GRPORun, "sft": SFTRun, "dpo": DPORun, "reward_model": RewardModelRun}
Rows = list[dict[str, Any]]


def train(
    workdir: pathlib.Path,
    model: pathlib.Path,
    devices: int = 1,
    *,
    config: pathlib.Path | str = CONFIG,
    **changes: Any,
) -> Rows:
    """Runs the config in this process with `a__b=value` as `config.a.b`; the rows of metrics.jsonl."""
    settings = read_settings(config, **{"model__name": model, **changes})
    with use_mesh(make_mesh(settings.mesh, jax.devices()[:devices])):
        RUNS[settings.stage](settings, workdir).train()
    return read_rows(workdir / "metrics.jsonl")


def read_settings(config: pathlib.Path | str, **changes: Any) -> Any:
    """The checked settings of a config file, with `a__b=value` as the flag `--config.a.b=value`."""
    flags = {key.replace("__", "."): str(value) for key, value in changes.items()}
    return resolve_run(load_config(str(config)), flags).settings


def start(
    model: pathlib.Path, workdir: pathlib.Path, *flags: str, config: pathlib.Path | str = CONFIG, **environment: str
) -> subprocess.Popen:
    """`python -m r1jax.train` on one device; what it says goes to WORKDIR.log."""
    command = [sys.executable, "-m", "r1jax.train", f"--config={config}", f"--config.model.name={model}"]
    device = {"XLA_FLAGS": make_xla_flags(1)}
    with open(workdir.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            [*command, f"--workdir={workdir}", *flags],
            cwd=ROOT,
            env={**os.environ, **device, **environment},
            stdout=log,
            stderr=log,
        )


def untimed(rows: Rows) -> Rows:
    return [{key: row[key] for key in row if not any(part in key for part in TIMED)} for row in rows]


def last_step(workdir: pathlib.Path) -> int:
    """The step of the last row of metrics.jsonl; -1 without one."""
    return max((row["step"] for row in read_rows(workdir / "metrics.jsonl")), default=-1)


def assert_same_run(one: pathlib.Path, other: pathlib.Path) -> None:
    """Bit-identical arrays of the newest checkpoint, metrics (but timings) and samples. The arrays are read without
    their shardings, which may name devices of several processes.
    """
    read = lambda workdir: path.read_bytes() if (path := workdir / "samples.jsonl").exists() else b""
    assert read(one) == read(other)
    assert untimed(read_rows(one / "metrics.jsonl")) == untimed(read_rows(other / "metrics.jsonl"))
    found, expected = (SavedArrays(newest_checkpoint(workdir)) for workdir in (one, other))
    assert found.paths == expected.paths and found.path.name == expected.path.name
    for path in expected.paths:
        assert found.read(path).tobytes() == expected.read(path).tobytes(), path


def read_completions(workdir: pathlib.Path) -> list[str]:
    return [row["completion"] for row in read_rows(workdir / "samples.jsonl")]


def read_params(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """The parameters of the newest checkpoint by path."""
    newest = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda folder: int(folder.name))
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(newest.resolve() / "state")
    leaves = jax.tree_util.tree_leaves_with_path(state["params"])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
