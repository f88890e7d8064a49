"""The `episode` section of a config: how long a trajectory may become, and how its environment is run."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from r1jax.core.errors import UserError

Isolation = Literal["thread", "process", "sandbox"]


@dataclasses.dataclass(frozen=True)
class EpisodeConfig:
    """Settings of trajectories with an environment.

    Attributes:
      arguments: arguments of every `reset`, beside the columns of its row.
      column: column of a row that names its environment, where config.environment is several by name.
      max_turns: largest number of sampled turns.
      turn_tokens: largest number of tokens that are sampled in a turn; 0 is rollout.max_new_tokens.
      max_tokens: largest number of tokens behind the prompt, sampled and given together; 0 is rollout.max_new_tokens.
      stop_texts: texts that end a turn, beside the model's stop ids.
      format: way of tools: the model's chat template, the tagged format (text/tools/dialogue.py), or auto, the template
        where it shows tools.
      call_seconds: longest time of one call of an environment.
      workers: calls of environments that run at once.
      isolation: where environments run: in threads of the run, in processes, or in the sandbox.
      memory_mb: memory of an environment in a process or in the sandbox.
      reply_characters: characters of a reply or result, of which the rest is cut off and counted.
    """

    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    column: str = "environment"
    max_turns: int = 8
    turn_tokens: int = 0
    max_tokens: int = 0
    stop_texts: tuple[str, ...] = ()
    format: Literal["auto", "template", "tagged"] = "auto"
    call_seconds: float = 30.0
    workers: int = 16
    isolation: Isolation = "thread"
    memory_mb: int = 1024
    reply_characters: int = 8000

    def check_episode(self) -> None:
        """Raises UserError for a value out of its range."""
        rules: dict[str, tuple[bool, str]] = {
            "max_turns": (self.max_turns >= 1, "must be at least 1"),
            "turn_tokens": (self.turn_tokens >= 0, "must be 0 or more"),
            "max_tokens": (self.max_tokens >= 0, "must be 0 or more"),
            "call_seconds": (0 < self.call_seconds < math.inf, "must be positive, and finite"),
            "workers": (1 <= self.workers <= 4096, "must be from 1 to 4096"),
            "memory_mb": (self.memory_mb >= 64, "must be at least 64"),
            "reply_characters": (self.reply_characters >= 1, "must be at least 1"),
        }
        for name, (is_right, rule) in rules.items():
            if not is_right:
                raise UserError(f"config.episode.{name} {rule}, got {getattr(self, name)!r}")
