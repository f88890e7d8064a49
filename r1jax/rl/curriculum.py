"""Prompt curriculum: the latest solve rate of each prompt, and reduced sampling of prompts that are too easy or too
hard.

Prompts that all answers solve, or none, teach a group-relative learner nothing. They are skipped with a probability, so
that they are still sampled sometimes: the policy changes. The choice is a function of (seed, position in the data) and
of the rates, and the rates are in the checkpoint: a resumed run samples the same prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from r1jax.core.seeds import derive_seed
from r1jax.data.loader import PromptLoader, compute_fingerprint

# Maximum rows scanned per prompt; the last one is taken whatever its rate.
LOOKS_A_PROMPT = 16


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """Prompts that are passed over by how often they were solved.

    Attributes:
      skip: probability that a prompt is skipped whose last solve rate is at most `low` or at least `high`; 0 is
        off.
      low: solve rate up to which a prompt counts as too hard.
      high: solve rate from which a prompt counts as too easy.
      reward: name of the reward whose mean over a group is the solve rate; "" is the first of config.rewards by
        the alphabet.
    """

    skip: float = 0.0
    low: float = 0.0
    high: float = 1.0
    reward: str = ""


class Curriculum:
    """Takes prompts from a loader and tracks their solve rates."""

    def __init__(self, config: CurriculumConfig, loader: PromptLoader, seed: int):
        self.config, self.loader, self.seed = config, loader, seed
        self._rates: dict[str, float] = {}
        self._passed_over = 0

    def take(self, count: int) -> list[dict[str, Any]]:
        """The next `count` prompts of the data that are not skipped."""
        if not self.config.skip:
            return self.loader.take(count)
        taken: list[dict[str, Any]] = []
        looks = LOOKS_A_PROMPT * count
        while len(taken) < count:
            place = self.loader.position
            (row,) = self.loader.take(1)
            looks -= 1
            draw = derive_seed("pools", self.seed, place) / 2**32
            if looks >= 0 and self._is_extreme(self._rates.get(_key(row))) and draw < self.config.skip:
                self._passed_over += 1
            else:
                taken.append(row)
        return taken

    def remember(self, rows: Sequence[dict[str, Any]], rates_PG: np.ndarray) -> dict[str, float]:
        """Records the rewards of each prompt's answers (NaN: unknown), and returns metrics of the pools."""
        if not self.config.skip:
            return {}
        for row, rates in zip(rows, rates_PG, strict=True):
            known = rates[~np.isnan(rates)]
            if len(known):
                self._rates[_key(row)] = float(known.mean())
        rates = np.array([*self._rates.values()])
        passed, self._passed_over = self._passed_over, 0
        return {
            "pools/known": float(len(rates)),
            "pools/hard": float((rates <= self.config.low).mean()) if len(rates) else 0.0,
            "pools/easy": float((rates >= self.config.high).mean()) if len(rates) else 0.0,
            "pools/passed_over": float(passed),
        }

    def get_state(self) -> dict[str, float]:
        """State as plain numbers for JSON."""
        return dict(self._rates)

    def set_state(self, state: dict[str, float]) -> None:
        """Continues from the state of `get_state`."""
        self._rates = dict(state)

    def _is_extreme(self, rate: float | None) -> bool:
        return rate is not None and (rate <= self.config.low or rate >= self.config.high)


def _key(row: dict[str, Any]) -> str:
    return str(compute_fingerprint([row]))
