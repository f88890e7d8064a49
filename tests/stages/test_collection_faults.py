"""A collection killed at random moments, in one process and in two, and its memory over many prompts.

Slow: $R1JAX_TEST_KILLS kills each (2; the guarantee was shown with 10).
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.environment import make_xla_flags
from tests.stages.runs import ROOT, start
from tests.stages.test_process_faults import KILLS, SECONDS, Pair

CONFIG = pathlib.Path(__file__).with_name("tiny_collection.py")
NAMES = ("traces.jsonl", "traces.scores.jsonl", "set.jsonl", "set.stats.json")
CHUNK = 16  # prompts
SLOW_REWARD = {"R1JAX_TEST_REWARD_SECONDS": "0.004"}


def read(workdir: pathlib.Path) -> dict[str, bytes]:
    return {name: (workdir / name).read_bytes() for name in NAMES}


def count_lines(file: pathlib.Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def measure(workdir: pathlib.Path) -> tuple[int, int]:
    """Prompts sampled and prompts scored so far."""
    return count_lines(workdir / "traces.jsonl"), count_lines(workdir / "traces.scores.jsonl")


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert start(tiny_model, tmp_path / "whole", config=CONFIG).wait() == 0
    generator, hits = np.random.default_rng(0), 0
    workdir = tmp_path / "run"
    for _ in range(20 * KILLS):
        if hits == KILLS:
            break
        before = measure(workdir)
        process = start(tiny_model, workdir, config=CONFIG, **SLOW_REWARD)
        while process.poll() is None and measure(workdir) == before:
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.4))
        if process.poll() is None:
            process.kill()
            hits += 1
        assert process.wait() in (0, -9), workdir.with_suffix(".log").read_text()
        sampled, scored = measure(workdir)
        assert sampled >= before[0] - CHUNK and scored >= before[1] - CHUNK
        if (workdir / "set.jsonl").exists():
            assert read(workdir) == read(tmp_path / "whole")
            workdir = tmp_path / f"run{hits}"
    assert hits == KILLS and start(tiny_model, workdir, config=CONFIG).wait() == 0
    assert read(workdir) == read(tmp_path / "whole")


@pytest.mark.slow
def test_of_two_processes_either_may_be_killed(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = CONFIG, ["--config.mesh.data=2"]
    codes, logs = Pair(tiny_model, tmp_path / "whole", config=config).end()
    assert codes == [0, 0], logs
    generator, hits = np.random.default_rng(1), 0
    workdir = tmp_path / "run"
    for _ in range(20 * KILLS):
        if hits == KILLS:
            break
        before = measure(workdir)
        pair = Pair(tiny_model, workdir, config=config, odd=SLOW_REWARD)
        while all(process.poll() is None for process in pair.processes) and measure(workdir) == before:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.4))
        victim = pair.processes[int(generator.integers(2))]
        hits += victim.poll() is None
        victim.kill()
        pair.end(4 * SECONDS)
        if (workdir / "set.jsonl").exists():
            assert read(workdir) == read(tmp_path / "whole")
            workdir = tmp_path / f"run{hits}"
    codes, logs = Pair(tiny_model, workdir, config=config).end()
    assert hits == KILLS and codes == [0, 0], logs
    assert read(workdir) == read(tmp_path / "whole")


MANY = """
import pathlib, resource, sys, time

from tests.stages import stub_teacher
from r1jax.data.filters import FilterConfig
from r1jax.rewards.base import load_rewards
from r1jax.stages import collection

prompts, near, place = int(sys.argv[1]), float(sys.argv[2]), pathlib.Path(sys.argv[3])
spec = {"words": {"function": "tests.stages.stub_teacher:words_reward"}}
rows = [{"prompt": f"question {n}", "solution": stub_teacher.WORDS[n % 12]} for n in range(prompts)]
generate = collection.TeacherSampling(num_samples=4, max_new_tokens=400, slots=64)
collection.Teacher._load = lambda self: (stub_teacher.StubSampler(), stub_teacher.StubWindows(self._config))
keep = collection.Record.keep

def measured(self, *arguments):
    keep(self, *arguments)
    stub_teacher.scored.clear()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    print("RSS", self.done, pages * resource.getpagesize(), flush=True)

collection.Record.keep = measured
filters = FilterConfig(min_reward=0.85, max_repetition=1.0, near_duplicates=near)
parts = stub_teacher.MODEL, rows, generate, load_rewards(spec), filters, place
collection.collect(*parts, judged_by=spec)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_samples(tmp_path: pathlib.Path) -> None:
    """$R1JAX_TEST_PROMPTS prompts (4,000), four samples each of 200 tokens on the average, and a reward of half a
    millisecond a sample: what is remembered of a sample is its digest."""
    count = os.environ.get("R1JAX_TEST_PROMPTS", "4000")
    done = subprocess.run(
        [sys.executable, "-c", MANY, count, "0", str(tmp_path / "run")],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": make_xla_flags(1), "R1JAX_TEST_REWARD_SECONDS": "0.0005"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    sizes = np.array([[float(value) for value in line[1:]] for line in lines if line[:1] == ["RSS"]])
    later = sizes[len(sizes) // 4 :]
    slope = np.polyfit(later[:, 0] * 4, later[:, 1], 1)[0]
    print(f"{slope:.0f} bytes a sample; {sizes[0, 1] / 1e6:.0f} MB at first, {sizes[-1, 1] / 1e6:.0f} at last")
    size = (tmp_path / "run" / "traces.jsonl").stat().st_size / (4 * int(count))
    print(f"{size:.0f} bytes a sample on file")
    assert slope < 1000 < size  # of few prompts the slope is that of Python's allocator, too
    shown = [line for line in done.stdout.splitlines() if line.startswith("prompts ")]
    assert all(word in shown[-1] for word in ("tokens/s", "kept ", "dropped ", "reward ", "elapsed"))
    assert any(" left " in line for line in shown)
    assert json.loads((tmp_path / "run" / "set.stats.json").read_text())["input"]["samples"] == 4 * int(count)
