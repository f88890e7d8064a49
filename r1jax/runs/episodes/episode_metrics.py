"""Metrics of episodes: TRL's names where it has one, the counts of tools by name, faults, and times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from r1jax.runs.episodes.trajectory import Episode


def describe_episodes(episodes: Sequence[Episode], parked: float) -> dict[str, float]:
    """Metrics of a step.

    `tools/call_frequency`: calls an episode; `tools/failure_frequency`: share of calls that raised, did not exist or
    could not be read; `tools/NAME/calls` and `tools/NAME/failures`: counts, `unknown` and `malformed` among the names;
    `env/turns/mean`, `env/faults`, `env/cut_replies`, `env/given_tokens/mean`. `time/environments`: seconds that an
    episode's environment took; `time/parked`: share of slots that waited for one.
    """
    calls, failures, events = (
        sum((Counter(getattr(episode, name)) for episode in episodes), Counter[str]())
        for name in ("calls", "failures", "events")
    )
    none_such = failures["unknown"] + failures["malformed"]
    made, count = calls.total() + none_such, len(episodes)
    metrics = {
        "env/turns/mean": float(np.mean([episode.turns for episode in episodes])),
        "env/faults": float(sum(value for name, value in events.items() if name != "cut reply")),
        "env/cut_replies": float(events["cut reply"]),
        "env/given_tokens/mean": float(np.mean([len(e.completion.tokens) - e.completion.length for e in episodes])),
        "tools/call_frequency": made / count,
        "tools/failure_frequency": failures.total() / made if made else 0.0,
        "time/environments": float(np.mean([episode.seconds for episode in episodes])),
        "time/parked": parked,
    }
    for name in sorted({*calls, *failures}):
        metrics[f"tools/{name}/calls"] = float(calls[name] or failures[name])
        metrics[f"tools/{name}/failures"] = float(failures[name])
    for name in sorted(events):
        metrics[f"env/events/{name.replace(' ', '_')}"] = float(events[name])
    return metrics
