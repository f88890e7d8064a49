"""Time and cost of a step and of a run, from the bounds of its compiled programs and how often a step runs each.

A completion is taken to be as long as it may be, and host work, rewards, evaluation and checkpoints are left out: the
seconds are the least that the chips need, not a prediction.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from r1jax.aot.compiled import Compiled, find_bounds
from r1jax.core.sharding import batch_parts
from r1jax.rl.grpo_config import GRPOConfig
from r1jax.rollout.slots import EngineConfig
from r1jax.runs.chips import Topology
from r1jax.stages.sft_config import SFTConfig

PHASES = {
    "sampling": ("weights", "prefix", "prefill", "insert", "decode", "collect", "grow"),
    "scoring": ("logprobs",),
    "updating": ("accumulate", "apply"),
}


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a step. seconds: at best; tokens: sampled or trained on, of all chips; bound_by: the resource that
    takes most of the time; predicted: seconds by aot/timeline.py.
    """

    name: str
    seconds: float
    tokens: float
    bound_by: str
    predicted: float = 0.0


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """The phases of a step, and the steps of the run (0: unknown), on so many chips."""

    phases: list[Phase]
    steps: int
    chips: int

    @property
    def seconds(self) -> float:
        """Seconds of a step at best."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def predicted(self) -> float:
        """Predicted seconds of a step."""
        return sum(phase.predicted for phase in self.phases)

    def as_dict(self) -> dict[str, Any]:
        """The figures of a step and a run."""
        hours = self.seconds * self.chips / 3600
        step = {"seconds": self.seconds, "chip_hours": hours, "predicted_seconds": self.predicted}
        run = {name: value * self.steps for name, value in step.items()}
        phases = {
            phase.name: {
                "seconds": phase.seconds,
                "tokens_per_second_per_chip": phase.tokens / phase.seconds / self.chips,
                "bound_by": phase.bound_by,
                "predicted_seconds": phase.predicted,
            }
            for phase in self.phases
        }
        return {"phases": phases, "step": step, "run": {"steps": self.steps, **run} if self.steps else None}

    def lines(self) -> list[str]:
        """The figures as text."""
        figures = self.as_dict()
        lines = ["at best (predicted), with completions of full length:"]
        for name, phase in figures["phases"].items():
            speed = f"{phase['tokens_per_second_per_chip']:,.0f} tokens/s/chip"
            lines.append(f"  {name:<10}{_spell_both(phase):>22} a step  {speed:>24}  {phase['bound_by']} binds")
        for name, part in (("a step", figures["step"]), (f"{self.steps:,} steps", figures["run"])):
            if part:
                lines.append(f"  {name:<10}{_spell_both(part):>22}  {part['chip_hours']:,.3g} chip-hours")
        return lines


def find_step_costs(settings: Any, programs: Mapping[str, Compiled], topology: Topology) -> StepCosts | None:
    """The costs of a GRPO or SFT run whose programs were all compiled and fit; None for other runs. Under the run's
    mesh.
    """
    counted = count_programs(settings)
    if counted is None:
        return None
    counts, tokens = counted
    if any(name in counts and math.isnan(program.bound_seconds) for name, program in programs.items()):
        return None
    if not counts.keys() <= programs.keys() | {"prefix", "grow", "shrink", "logprobs", "weights", "collect"}:
        return None  # only some programs were asked for
    phases = []
    for phase, names in PHASES.items():
        seconds, predicted, by = 0.0, 0.0, dict[str, float]()
        for name in names:
            if name in programs and counts.get(name):
                bounds = find_bounds(programs[name].costs, topology.chip)
                slowest = max(bounds, key=lambda kind: bounds[kind])
                seconds += counts[name] * bounds[slowest]
                predicted += counts[name] * programs[name].predicted_seconds
                by[slowest] = by.get(slowest, 0.0) + counts[name] * bounds[slowest]
        if seconds:
            phases.append(Phase(phase, seconds, tokens, max(by, key=lambda kind: by[kind]), predicted))
    return StepCosts(phases, settings.steps, topology.chips) if phases else None


def count_programs(settings: Any) -> tuple[dict[str, int], int] | None:
    """How often a step runs each program by its name, and its tokens; None for stages other than GRPO and SFT. The
    policy as its own judge is not counted.
    """
    parts = batch_parts()
    if isinstance(settings, SFTConfig):
        rows = settings.train.rows_per_step
        accumulations = max(1, rows // (settings.train.micro_batch_size * parts))
        return {"accumulate": accumulations, "apply": 1}, rows * settings.data.length
    if not isinstance(settings, GRPOConfig):
        return None
    rollout, train = settings.rollout, settings.train
    updates, limit = train.updates_per_step, rollout.max_new_tokens
    accumulations = updates * math.ceil(rollout.completions / updates / (train.micro_batch_size * parts))
    recomputed = updates > 1 and train.old_logprobs == "trainer"
    scored = int(recomputed) + int(settings.loss.kl_coefficient > 0)
    fills = math.ceil(rollout.prompts_per_step / rollout.prefill_batch)
    counts = {
        "weights": 1,
        "prefix": 1,
        "prefill": fills,
        "insert": fills,
        "decode": math.ceil(rollout.completions / rollout.slots) * limit,
        "collect": math.ceil(rollout.completions / max(1, int(rollout.slots * EngineConfig.refill_share))),
        "grow": rollout.cache_pieces - 1,
        "shrink": 1,
        "logprobs": scored * accumulations,
        "accumulate": accumulations,
        "apply": updates,
    }
    return counts, rollout.completions * limit


def _spell_both(figures: Mapping[str, Any]) -> str:
    return f"{_spell_seconds(figures['seconds'])} ({_spell_seconds(figures['predicted_seconds'])})"


def _spell_seconds(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s"
