"""Programs compile once: what a step hands on has the placement that the next step's programs were compiled for."""

import gc
import pathlib
from typing import Any

import jax
import pytest

from r1jax.core.sharding import make_mesh, use_mesh
from r1jax.stages import grpo, sft
from r1jax.stages.preferences.dpo import DPORun
from r1jax.stages.preferences.reward_model import RewardModelRun
from tests.stages import runs

GRPO = {
    "rollout__prompts_per_step": 4,
    "rollout__slots": 32,
    "train__micro_batch_size": 4,
    "train__updates_per_step": 2,
    "loss__kl_coefficient": 0.01,
    "reference__every_updates": 2,
}
SPLIT = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
EXPERTS = {
    "model__name": "",
    "model__preset": "tiny_deepseek_v3",
    "model__sizes": '{"vocab_size": 264, "num_layers": 2, "mtp_depths": 0}',
    "mesh__data": 1,
    "mesh__expert": 2,
    "mesh__fsdp": 4,
}


class Compilations:
    """Counts the programs that jax compiles or reads from its cache."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, seconds: float, **_: Any) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


COMPILATIONS = Compilations()


@pytest.mark.parametrize(
    ("stage", "config", "changes"),
    [
        pytest.param(grpo.GRPORun, "tiny_grpo.py", {**GRPO, **SPLIT}, id="grpo"),
        pytest.param(sft.SFTRun, "tiny_sft.py", {**SPLIT, "train__micro_batch_size": 1}, id="sft"),
        pytest.param(
            DPORun,
            "preferences/tiny_preferences.py",
            {**SPLIT, "train__micro_batch_size": 1},
            id="dpo",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            RewardModelRun,
            "preferences/tiny_preferences.py:reward_model",
            {**SPLIT, "train__micro_batch_size": 1, "lora__rank": 2},
            id="reward_model",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            grpo.GRPORun, "tiny_grpo.py", {**GRPO, **SPLIT, "lora__rank": 2}, id="lora", marks=pytest.mark.slow
        ),
        pytest.param(grpo.GRPORun, "tiny_grpo.py", {**GRPO, **EXPERTS}, id="experts", marks=pytest.mark.slow),
        pytest.param(
            grpo.GRPORun,
            "tiny_grpo.py",
            {**GRPO, "loss__kl_in": "reward", "mesh__data": 8, "reference__every_updates": 0},
            id="kl in the reward",
        ),
    ],
)
def test_nothing_compiles_after_the_second_step(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path, stage: Any, config: str, changes: dict[str, Any]
) -> None:
    settings = runs.read_settings(pathlib.Path(__file__).parent / config, **{"model__name": tiny_model, **changes})
    counts = []
    with use_mesh(make_mesh(settings.mesh, jax.devices())):
        run = stage(settings, tmp_path / "run")
        for step in range(1, 5):
            before = COMPILATIONS.count
            run.step(step)
            counts.append(COMPILATIONS.count - before)
        learner = run.updates.learner
        programs = [learner.accumulate, learner.apply, learner.zeros]
        if isinstance(run, grpo.GRPORun):
            programs += [run.engine._prefill, run.engine._decode, run.updates.logprobs]
        assert [program._cache_size() for program in programs] == [1] * len(programs)
    assert counts[2:] == [0, 0], counts


def test_a_resumed_run_keeps_no_second_copy(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The initial state makes room for the restored one: as many bytes live after a resume as in a run that went on."""
    live = []
    for steps in (2, 3, 3):
        gc.collect()
        before = jax.live_arrays()
        known = set(map(id, before))
        settings = runs.read_settings(runs.CONFIG, model__name=tiny_model, steps=steps, eval__every_steps=9)
        run = grpo.GRPORun(settings, tmp_path / ("run" if len(live) < 2 else "whole"))
        run.train()
        live.append(sum(array.nbytes for array in jax.live_arrays() if id(array) not in known))
        del run
    assert live[1] == live[2]
