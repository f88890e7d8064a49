"""A step of a run on the devices at hand, according to their compiler: seconds at best, and memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from r1jax.aot.compiled import compile_program
from r1jax.aot.programs import list_programs
from r1jax.aot.step_costs import find_step_costs
from r1jax.runs.chips import Chip, Topology


class ExpectedStep(NamedTuple):
    """seconds: of each phase at best, {} where they are unknown. peak: bytes on a device of the largest program, with
    all that the run keeps there.
    """

    seconds: dict[str, float]
    peak: int


def expect_step(settings: Any, chip: Chip) -> ExpectedStep:
    """The step of a GRPO or SFT run, under the run's mesh over the devices of all processes. chip: rates of one."""
    topology = Topology(chip, (jax.device_count(),))
    programs = {program.name: compile_program(program, topology) for program in list_programs(settings)}
    costs = find_step_costs(settings, programs, topology)
    seconds = {phase.name: phase.seconds for phase in costs.phases} if costs else {}
    return ExpectedStep(seconds, max(program.memory.peak for program in programs.values()))
