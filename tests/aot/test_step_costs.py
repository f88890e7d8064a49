"""Seconds, tokens and chip-hours of a step, from bounds of its programs, and how often a step runs each."""

import dataclasses

import pytest

from r1jax.aot.compiled import Compiled, Memory, bound_seconds
from r1jax.aot.costs import Costs
from r1jax.aot.step_costs import count_programs, find_step_costs
from r1jax.core.resolution import resolve
from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.rl.grpo_config import GRPOConfig
from r1jax.runs.chips import read_topology
from r1jax.stages.sft_config import SFTConfig

TOPOLOGY = read_topology("v6e-4")
CHIP = TOPOLOGY.chip
GRPO = {
    "steps": 10,
    "model": {"name": "m"},
    "data": {"source": "addition"},
    "rewards": {"answer_reward": 1.0},
    "rollout": {"prompts_per_step": 16, "group_size": 8, "slots": 64, "prefill_batch": 8, "max_new_tokens": 100},
    "train": {"micro_batch_size": 4, "updates_per_step": 2},
    "loss": {"kl_coefficient": 0.1},
}


def compile_to(**costs: float) -> Compiled:
    found = Costs(**costs)
    return Compiled(1.0, Memory(0, 0, 0, 0), found, 0.0, bound_seconds(found, CHIP), True, "")


PROGRAMS = {
    "prefill": compile_to(flops=CHIP.flops),
    "insert": compile_to(),
    "decode": compile_to(hbm_bytes=0.02 * CHIP.hbm_bandwidth, flops=0.001 * CHIP.flops),
    "logprobs": compile_to(flops=CHIP.flops),
    "accumulate": compile_to(flops=3 * CHIP.flops, wire=CHIP.ici_bandwidth),
    "apply": compile_to(wire=0.5 * CHIP.ici_bandwidth),
}


def test_a_grpo_step_runs_each_program_so_often() -> None:
    counts, tokens = count_programs(resolve(GRPOConfig, GRPO).settings) or ({}, 0)
    assert tokens == 16 * 8 * 100
    assert (counts["prefill"], counts["decode"]) == (2, 200)
    assert (counts["accumulate"], counts["apply"]) == (32, 2)
    assert counts["logprobs"] == 64, "the old log-probs of two updates, and the reference's"


def test_devices_share_the_micro_batches() -> None:
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=4))):
        counts, _ = count_programs(resolve(GRPOConfig, GRPO).settings) or ({}, 0)
        assert (counts["accumulate"], counts["decode"]) == (4, 200)
        data = {"sources": {"a": {"path": "x.jsonl"}}, "length": 128}
        rows = {"model": {"name": "m"}, "data": data, "steps": 3, "train": {"rows_per_step": 32, "micro_batch_size": 2}}
        assert count_programs(resolve(SFTConfig, rows).settings) == ({"accumulate": 2, "apply": 1}, 32 * 128)


def test_seconds_tokens_and_what_binds() -> None:
    costs = find_step_costs(resolve(GRPOConfig, GRPO).settings, PROGRAMS, TOPOLOGY)
    assert costs is not None
    figures = costs.as_dict()
    assert {name: phase["bound_by"] for name, phase in figures["phases"].items()} == {
        "sampling": "HBM",
        "scoring": "FLOPs",
        "updating": "FLOPs",
    }
    seconds = {name: phase["seconds"] for name, phase in figures["phases"].items()}
    assert seconds == pytest.approx({"sampling": 2 + 200 * 0.02, "scoring": 64.0, "updating": 96 + 1})
    assert figures["phases"]["sampling"]["tokens_per_second_per_chip"] == pytest.approx(12_800 / 6 / 4)
    assert figures["step"]["seconds"] == pytest.approx(167)
    assert figures["step"]["chip_hours"] == pytest.approx(167 * 4 / 3600)
    assert figures["run"]["steps"] == 10 and figures["run"]["chip_hours"] == pytest.approx(10 * 167 * 4 / 3600)
    text = "\n".join(costs.lines())
    assert "533 tokens/s/chip  HBM binds" in text and "10 steps" in text and "1.86 chip-hours" in text


def test_a_run_that_does_not_fit_or_is_compiled_in_part_has_no_time() -> None:
    settings = resolve(GRPOConfig, GRPO).settings
    failed = dataclasses.replace(PROGRAMS["decode"], bound_seconds=float("nan"))
    assert find_step_costs(settings, {**PROGRAMS, "decode": failed}, TOPOLOGY) is None
    assert find_step_costs(settings, {"apply": PROGRAMS["apply"]}, TOPOLOGY) is None
    assert find_step_costs(object(), PROGRAMS, TOPOLOGY) is None
