"""Pairs from samples of one prompt with rewards: the best with the worst (rejection sampling of preferences)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from r1jax.core.errors import UserError
from r1jax.data.filters import Trace


@dataclasses.dataclass(frozen=True)
class GroupPairConfig:
    """The `pairs` section: preferences in place of samples.

    Attributes:
      per_prompt: pairs of a prompt, the best sample with the worst, the second best with the second worst, and so on; 0
        makes a set of samples.
      min_gap: smallest difference of rewards of a pair; equal rewards make none.
    """

    per_prompt: int = 0
    min_gap: float = 0.0

    def __post_init__(self) -> None:
        if self.per_prompt < 0:
            raise UserError(f"config.pairs.per_prompt must be at least 0, got {self.per_prompt}")
        if not 0 <= self.min_gap < math.inf:
            raise UserError(f"config.pairs.min_gap must be at least 0, and finite, got {self.min_gap}")


def pair_samples(traces: Sequence[Trace], dropped: Sequence[str], config: GroupPairConfig) -> list[dict[str, Any]]:
    """Rows `prompt`, `chosen`, `rejected`, `score_chosen`, `score_rejected` from samples, those of a prompt together.

    dropped: the filter that drops a sample, "" for none. The chosen one passed all filters; the rejected one is any
    other that was not cut off. A sample is in one pair at most, and of equal texts one counts.
    """
    groups: dict[int, list[tuple[Trace, str]]] = {}
    for trace, why in zip(traces, dropped, strict=True):
        groups.setdefault(trace.group, []).append((trace, why))
    return [row for samples in groups.values() for row in _pair_group(samples, config)]


def _pair_group(samples: Sequence[tuple[Trace, str]], config: GroupPairConfig) -> list[dict[str, Any]]:
    best = sorted((trace for trace, why in samples if not why), key=lambda trace: -trace.reward)
    texts: dict[str, Trace] = {}
    for trace, why in samples:
        if why != "cut_off":
            texts.setdefault(trace.completion, trace)
    worst = sorted(texts.values(), key=lambda trace: trace.reward)
    rows: list[dict[str, Any]] = []
    used = set[str]()
    for chosen in best:
        rejected = next((trace for trace in worst if trace.completion not in used | {chosen.completion}), None)
        gap = -math.inf if rejected is None else chosen.reward - rejected.reward
        if rejected is None or len(rows) == config.per_prompt or not (gap > 0 and gap >= config.min_gap):
            break  # gaps shrink from pair to pair
        if chosen.completion in used:
            continue
        used |= {chosen.completion, rejected.completion}
        scores = {"score_chosen": chosen.reward, "score_rejected": rejected.reward}
        rows.append({"prompt": chosen.prompt, "chosen": chosen.completion, "rejected": rejected.completion, **scores})
    return rows
