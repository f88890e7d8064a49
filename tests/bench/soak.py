"""A GRPO run of an hour on a tiny model, with evaluations, checkpoints and a reward that runs programs in the sandbox;
every ten seconds its resident memory, processes, open files and the files of its workdir are counted.

One JSON line at the end: steps, and for each count its first and last value and the slope an hour with its standard
error, from the first twentieth of the time on (compilation, first evaluations and caches come before).

    python -m tests.bench.soak [--minutes 60] [--workdir DIR]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from r1jax.core.metrics import read_rows
from r1jax.rewards.code import code_reward
from tests.environment import make_xla_flags
from tests.tiny_model import write_tiny_model

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 10.0  # between two counts
WARM = 1 / 20  # share of the counts that come before the run is warm
_numbers = itertools.count()


def program_reward(completions: Sequence[str], **columns: Any) -> list[float | None]:
    """1 for every fourth completion, if a program that prints it runs in the sandbox; each program is new."""
    texts = completions[::4]
    programs = [f"```python\nprint(len({text!r}), {next(_numbers)} < 0)\n```" for text in texts]
    tests = [{"type": "stdin_stdout", "input": "", "output": f"{len(text)} False\n"} for text in texts]
    infos = [{"language": "python", "test_cases": [test]} for test in tests]
    values = code_reward(programs, infos)
    return [values[index // 4] if index % 4 == 0 else 0.0 for index in range(len(completions))]


def count(process: psutil.Process, workdir: pathlib.Path) -> dict[str, float]:
    """Resident megabytes of the run and of its helpers, processes, threads, open files, and files of the workdir."""
    tree = [process, *process.children(recursive=True)]
    memory = []
    for member in tree:
        try:
            memory.append(member.memory_info().rss / 1e6)
        except psutil.NoSuchProcess:
            memory.append(0.0)
    return {
        "resident_megabytes": memory[0],
        "helpers_megabytes": sum(memory[1:]),
        "processes": len(tree),
        "threads": process.num_threads(),
        "open_files": process.num_fds(),
        "files": sum(len(names) for _, _, names in os.walk(workdir)),
    }


def fit(hours: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Slope of a line through the values by least squares, and its standard error, both an hour."""
    centred = hours - hours.mean()
    slope = float((centred @ values) / (centred @ centred))
    rest = values - values.mean() - slope * centred
    return slope, float(np.sqrt((rest @ rest) / max(1, len(values) - 2) / (centred @ centred)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--workdir")
    args = parser.parse_args()
    folder = pathlib.Path(args.workdir or tempfile.mkdtemp(prefix="soak-"))
    model, workdir = folder / "model", folder / "run"
    write_tiny_model(model)
    command = [sys.executable, "-m", "r1jax.train", "--config=tests/stages/tiny_grpo.py", f"--workdir={workdir}"]
    command += [f"--config.model.name={model}", "--config.steps=1000000", "--config.checkpoint.every_steps=20"]
    command += ["--config.eval.every_steps=25", "--config.log.show_every_steps=0", "--config.log.samples_per_step=2"]
    command += ['--config.rewards={"program_reward": {"function": "tests.bench.soak:program_reward", "weight": 1.0}}']
    environment = {**os.environ, "XLA_FLAGS": make_xla_flags(1), "PYTHONPATH": str(ROOT)}
    begun, rows = time.monotonic(), []
    with open(folder / "run.log", "wb") as log:
        run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    process = psutil.Process(run.pid)
    while time.monotonic() - begun < 60 * args.minutes:
        time.sleep(SECONDS)
        assert run.poll() is None, (folder / "run.log").read_text(errors="replace")[-3000:]
        rows.append({"hours": (time.monotonic() - begun) / 3600, **count(process, workdir)})
        (folder / "counts.jsonl").open("a").write(json.dumps(rows[-1]) + "\n")
    run.send_signal(signal.SIGTERM)
    code = run.wait(120)
    warm = rows[int(WARM * len(rows)) :]
    hours = np.array([row["hours"] for row in warm])
    report: dict[str, Any] = {"minutes": args.minutes, "exit_code": code, "counts": len(warm)}
    report["steps"] = max(row["step"] for row in read_rows(workdir / "metrics.jsonl"))
    for name in warm[0].keys() - {"hours"}:
        slope, error = fit(hours, np.array([row[name] for row in warm]))
        report[name] = {"first": warm[0][name], "last": warm[-1][name], "slope": slope, "stderr": error}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
