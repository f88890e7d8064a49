"""The search: the best first, different layouts compiled, results found again, faults told; configs that run."""

import json
import pathlib
import subprocess
from typing import Any

import pytest

from r1jax.aot import planner
from r1jax.aot.candidates import Job
from r1jax.aot.planner import choose_different, compile_candidates, rank, render_config
from r1jax.aot.programs import list_programs
from r1jax.core.config import load_config
from r1jax.core.sharding import make_mesh, use_mesh
from r1jax.runs.chips import read_topology
from r1jax.stages.registry import resolve_run

TOPOLOGY = read_topology("v5e:2x4")
RESULT = {
    "programs": {
        "accumulate": {"hbm_bytes": {"peak": 5}, "fits": True},
        "decode": {"hbm_bytes": {"peak": 7}, "fits": True},
    },
    "phases": {"sampling": {"predicted_seconds": 2.0}, "updating": {"predicted_seconds": 1.0}},
}


@pytest.fixture(scope="module")
def job() -> Job:
    return Job("tiny_llama", "grpo", rows=64, prompt=32, new=96)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> list[list[str]]:
    """A stand-in for compile_check's process, and an empty cache; the commands that were started."""
    started: list[list[str]] = []

    def run(command: list[str], **options: Any) -> Any:
        assert options["preexec_fn"] is not None and options["timeout"] == 9.0
        started.append(command)
        (output,) = [flag.partition("=")[2] for flag in command if flag.startswith("--output=")]
        pathlib.Path(output).write_text(json.dumps(RESULT))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(planner.subprocess, "run", run)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return started


@pytest.mark.parametrize("objective", ["time", "memory"])
def test_the_best_is_first(objective: str, job: Job) -> None:
    ranked = rank(job, TOPOLOGY.chip, 8, objective)
    values = [one.total if objective == "time" else one.bytes for one in ranked]
    assert values == sorted(values) and len(values) > 50 and all(one.fits is None for one in ranked)


def test_compiled_layouts_differ_in_more_than_batches(job: Job) -> None:
    chosen = choose_different(rank(job, TOPOLOGY.chip, 8, "time"), 4)
    kinds = {(c.data, c.fsdp, c.tensor, c.remat) for c in (one.candidate for one in chosen)}
    assert len(chosen) == len(kinds) == 4


def test_results_are_kept_by_content(job: Job, compiler: list[list[str]]) -> None:
    chosen, said = choose_different(rank(job, TOPOLOGY.chip, 8, "time"), 2), []
    for _ in range(2):
        found = compile_candidates(job, chosen, TOPOLOGY, said.append, 9.0)
        assert [(one.fits, one.bytes, one.total) for one in found] == [(True, 7, 3.0)] * 2
    assert len(compiler) == 2 and sum("compiled before" in line for line in said) == 2
    compile_candidates(job, chosen, read_topology("v5e:2x2"), said.append, 9.0)
    assert len(compiler) == 4, "another topology is another result"


def test_a_layout_that_does_not_compile_is_left_out_with_its_cause(
    job: Job, compiler: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: list[str], **options: Any) -> Any:
        if not compiler:
            compiler.append(command)
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, 2, "", "loading\nerror: no such mesh\n")

    monkeypatch.setattr(planner.subprocess, "run", fail)
    said: list[str] = []
    chosen = choose_different(rank(job, TOPOLOGY.chip, 8, "time"), 2)
    assert compile_candidates(job, chosen, TOPOLOGY, said.append, 9.0) == []
    assert said[1].endswith("left out: not compiled within 9 s") and said[3].endswith("error: no such mesh")


@pytest.mark.parametrize(
    ("model", "stage"), [("tiny_llama", "grpo"), ("tiny_llama", "sft"), ("tiny_qwen3_moe", "grpo")]
)
def test_the_config_of_a_layout_is_one_that_traces(model: str, stage: str, tmp_path: pathlib.Path) -> None:
    job = Job(model, stage, rows=64, prompt=32 if stage == "grpo" else 0, new=96)
    for number, one in enumerate(choose_different(rank(job, TOPOLOGY.chip, 8, "time"), 3)):
        file = tmp_path / f"{number}.py"
        file.write_text(render_config(job, one, TOPOLOGY.name))
        settings = resolve_run(load_config(str(file)), {"model.sizes": '{"vocab_size": 512}'}).settings
        assert (
            settings.train.micro_batch_size == one.candidate.micro_batch and settings.model.remat == one.candidate.remat
        )
        with use_mesh(make_mesh(settings.mesh)):
            names = [program.name for program in list_programs(settings)]
        assert {"accumulate", "apply"} <= set(names) and ("decode" in names) == (stage == "grpo")
