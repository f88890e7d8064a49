"""Rewards of trajectories, by the environments that are there to be read."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.core.structs import Completion
from r1jax.rewards.base import Reward, Scores, score


def score_played(
    rewards: Sequence[Reward],
    prompts: Sequence[Any],
    played: Sequence[Completion],
    columns: Mapping[str, Sequence[Any]],
    *,
    group_size: int = 0,
    strict: bool = True,
) -> Scores:
    """Scores of trajectories, in the process that has their environments.

    Rewards receive `environments`, the messages of each trajectory as its completion, and `payments` (of `get_reward`).
    A trajectory that its environment failed has no reward, and is out of the loss.
    """
    count = len(played)
    alive = [i for i, one in enumerate(played) if one.finish_reason != "fault"]
    columns = {
        **columns,
        "environments": [one.environment for one in played],
        "payments": [one.payment for one in played],
        **({"group_ids": [i // group_size for i in range(count)]} if group_size else {}),
    }
    pick = lambda values: [values[i] for i in alive]
    total, out_of_loss = np.zeros(count), np.ones(count, bool)
    by_name = {reward.name: np.full(count, np.nan) for reward in rewards}
    if not alive:
        return Scores(total, by_name, out_of_loss)
    found = score(
        rewards,
        prompts=pick([one.prompt or prompt for one, prompt in zip(played, prompts, strict=True)]),
        completions=pick([[*one.messages] for one in played]),
        completion_ids=pick([[*one.tokens] for one in played]),
        columns={name: pick(values) for name, values in columns.items()},
        strict=strict,
    )
    total[alive], out_of_loss[alive] = found.total, found.out_of_loss
    for name, values in found.by_name.items():
        by_name[name][alive] = values
    return Scores(total, by_name, out_of_loss, found.calls, found.metrics)
