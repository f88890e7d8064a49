"""Steps an hour and learning curves of GRPO runs that wait for their longest completions, and of runs that do not.

A random model of the sizes below with so many stop ids that lengths are close to geometric, of a mean near 50 and cut
at 512; 8 prompts x 8 completions a step in 64 slots. For each seed and each `max_staleness` one run in a process of its
own, in turns; one JSON line for each, and one with the ratios. Steps an hour count from the fourth step on, when all is
compiled; rewards are means over the first and the last quarter of the steps.

    python -m tests.bench.staleness [--steps 24] [--seeds 3] [--staleness 0 2] [--workdir DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from r1jax.core.metrics import read_rows
from tests.environment import make_xla_flags
from tests.tiny_model import write_tiny_model

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZES = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "max_position_embeddings": 1024}
STOPS = 8  # ids of the 304
COMPILED = 3  # steps
FLAGS = (
    "rollout.prompts_per_step=8",
    "rollout.group_size=8",
    "rollout.slots=64",
    "rollout.max_new_tokens=512",
    "rollout.temperature=1.0",
    "loss.importance_correction=token_truncate",
    "optimizer.learning_rate=3e-4",
    "data.eval_problems=0",
    "checkpoint.every_minutes=0",
    "log.tensorboard=false",
    "train.completions_per_row=1",
    "train.micro_batch_size=4",
)


def measure(model: pathlib.Path, workdir: pathlib.Path, steps: int, staleness: int, seed: int) -> dict[str, float]:
    """The figures of one run."""
    flags = [*FLAGS, f"steps={steps}", f"rollout.max_staleness={staleness}", f"seed={seed}", f"model.name={model}"]
    command = [sys.executable, "-m", "r1jax.train", "--config=tests/stages/tiny_grpo.py", f"--workdir={workdir}"]
    command += [f"--config.{flag}" for flag in flags]
    environment = {**os.environ, "XLA_FLAGS": make_xla_flags(1)}
    with open(workdir.with_suffix(".log"), "wb") as log:
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=log, stderr=log)
    rows = read_rows(workdir / "metrics.jsonl")
    late = rows[COMPILED:]
    mean = lambda name, part: float(np.mean([row.get(name, 0.0) for row in part]))
    quarter = max(1, steps // 4)
    return {
        "max_staleness": staleness,
        "seed": seed,
        "steps_an_hour": 3600 / mean("step_time", late),
        "rollout_seconds": mean("time/rollout", late),
        "train_seconds": mean("time/train", late),
        "idle_seconds": mean("time/idle", late),
        "mean_length": mean("completions/mean_length", rows),
        "age": mean("off_policy/staleness/mean", late),
        "first_reward": mean("reward", rows[:quarter]),
        "last_reward": mean("reward", rows[-quarter:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--workdir", type=pathlib.Path)
    options = parser.parse_args()
    folder = options.workdir or pathlib.Path(tempfile.mkdtemp())
    model = write_tiny_model(folder / "model", **SIZES)
    stops = np.linspace(4, 303, STOPS).astype(int).tolist()
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3, *stops][:8]}))
    found: dict[int, list[dict[str, float]]] = {staleness: [] for staleness in options.staleness}
    for seed in range(options.seeds):
        for staleness in options.staleness:
            run = measure(model, folder / f"staleness{staleness}_seed{seed}", options.steps, staleness, seed)
            found[staleness].append(run)
            print(json.dumps(run), flush=True)
    first, *others = options.staleness
    for staleness in others:
        ratios = [
            run["steps_an_hour"] / base["steps_an_hour"]
            for run, base in zip(found[staleness], found[first], strict=True)
        ]
        rewards = [np.array([run["last_reward"] for run in found[which]]) for which in (staleness, first)]
        error = (
            float(np.hypot(*(values.std(ddof=1) / len(values) ** 0.5 for values in rewards))) if len(ratios) > 1 else 0
        )
        gap = float(rewards[0].mean() - rewards[1].mean())
        row = {
            "max_staleness": staleness,
            "speed": float(np.median(ratios)),
            "reward_gap": gap,
            "standard_error": error,
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
