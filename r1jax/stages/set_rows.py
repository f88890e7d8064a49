"""Rows of the set that a collection writes: samples in the form asked for, trajectories, or preferences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from r1jax.data.filters import Trace
from r1jax.data.preferences.group_pairs import GroupPairConfig, pair_samples
from r1jax.text.prompts import fill_all


def make_rows(
    traces: Sequence[Trace], dropped: Sequence[str], reply: str, pairs: GroupPairConfig
) -> list[dict[str, Any]]:
    """The rows of samples, those of a prompt together.

    dropped: the filter that drops a sample, "" for none. reply: form of the texts, "" as they are.
    """
    shown = [rewrite(trace, reply) if reply else trace for trace in traces]
    if pairs.per_prompt:
        return pair_samples(shown, dropped, pairs)
    kept = [trace for trace, why in zip(shown, dropped, strict=True) if not why]
    return [trace.row or {"prompt": trace.prompt, "completion": trace.completion} for trace in kept]


def rewrite(trace: Trace, reply: str) -> Trace:
    """The trace in the form of `reply`, with normalized white space; unchanged if it lacks one of the tags."""
    _, opened, rest = trace.completion.partition("<think>")
    reasoning, closed, rest = rest.partition("</think>")
    _, asked, rest = rest.partition("<answer>")
    answer, answered, _ = rest.partition("</answer>")
    if not (opened and closed and asked and answered):
        return trace
    parts = {name: " ".join(text.split()) for name, text in {"reasoning": reasoning, "answer": answer}.items()}
    return dataclasses.replace(trace, completion=fill_all(reply, **parts))
