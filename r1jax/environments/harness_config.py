"""The `harness` section of a config: an external program for each trajectory, which asks the policy by HTTP."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from r1jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class HarnessConfig:
    """Settings of programs that talk to the policy in training, one for each trajectory.

    Attributes:
      command: the program with its arguments; a first word `python` is the Python that runs r1jax. () is none.
      tasks: file of tasks, in place of config.data.source and config.data.path; "" takes those of config.data.
      timeout: longest time of a program, in seconds.
      workers: programs that run at once.
      max_calls: largest number of requests of a program; further ones get status 400.
      isolation: where programs run: as processes with our rights, or in the sandbox (sandbox/box.py).
      memory_mb: memory of a program in the sandbox.
    """

    command: tuple[str, ...] = ()
    tasks: str = ""
    timeout: float = 300.0
    workers: int = 16
    max_calls: int = 64
    isolation: Literal["process", "sandbox"] = "process"
    memory_mb: int = 1024

    def check_harness(self) -> None:
        """Raises UserError for a value out of its range."""
        rules: dict[str, tuple[bool, str]] = {
            "command": (all(self.command), "must be words that are not empty"),
            "timeout": (0 < self.timeout < math.inf, "must be positive, and finite"),
            "workers": (1 <= self.workers <= 4096, "must be from 1 to 4096"),
            "max_calls": (self.max_calls >= 1, "must be at least 1"),
            "memory_mb": (self.memory_mb >= 64, "must be at least 64"),
        }
        for name, (is_right, rule) in rules.items():
            if not is_right:
                raise UserError(f"config.harness.{name} {rule}, got {getattr(self, name)!r}")
