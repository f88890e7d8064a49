"""A step's completions in their groups, and what metrics.jsonl and samples.jsonl say of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from r1jax.core.structs import Completion
from r1jax.rewards.base import Scores


@dataclasses.dataclass(frozen=True)
class Groups:
    """A step's rollout, flat in the order of prompts: completion i answers prompt i // G."""

    rows: list[dict[str, Any]]
    prompts: list[tuple[int, ...]]
    completions: list[Completion]
    texts: list[str]


def describe_rewards(scores: Scores, group_size: int) -> dict[str, float]:
    """Mean and spread of the total and of each reward; `reward_std` is the mean deviation within groups, as in TRL."""
    metrics = {
        "reward": float(scores.total.mean()),
        "reward_std": float(scores.total.reshape(-1, group_size).std(axis=1, ddof=1).mean()),
    }
    for name, values in scores.by_name.items():
        applied = values[~np.isnan(values)]
        metrics[f"rewards/{name}/mean"] = float(applied.mean()) if len(applied) else float("nan")
        metrics[f"rewards/{name}/std"] = float(applied.std(ddof=1)) if len(applied) > 1 else 0.0
    return metrics


def describe_samples(groups: Groups, scores: Scores, advantages_PG: np.ndarray) -> list[dict[str, Any]]:
    """The rows of samples.jsonl."""
    G = advantages_PG.shape[1]
    return [
        {
            "prompt": groups.rows[i // G]["prompt"],
            "completion": text,
            "reward": float(scores.total[i]),
            "rewards": {name: None if np.isnan(v[i]) else float(v[i]) for name, v in scores.by_name.items()},
            "advantage": float(advantages_PG[i // G, i % G]),
            "length": len(completion.tokens),
            "finish_reason": completion.finish_reason,
        }
        for i, (text, completion) in enumerate(zip(groups.texts, groups.completions, strict=True))
    ]
