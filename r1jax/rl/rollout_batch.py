"""The completions of a step in groups, with their metrics and rows of samples.jsonl."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from r1jax.core.structs import Completion
from r1jax.rewards.base import Reward, Scores, explain_values

SOLUTION_LIMIT = 2000  # characters


class Branch(NamedTuple):
    """A sequence that is trained on: the index of the completion that it belongs to, its prompt, and what is behind
    the prompt. group: sequences of equal prompts in one group may share it.
    """

    member: int
    group: int
    prompt: tuple[int, ...]
    completion: Completion


@dataclasses.dataclass(frozen=True)
class Groups:
    """The rollout of a step, flat in the order of prompts: completion i answers prompt i // G.

    played: for each completion the (prompt, sequence behind it) that are trained on in its place, any number of them;
    [] where every completion is one sequence behind the prompt of its group.
    """

    rows: list[dict[str, Any]]
    prompts: list[tuple[int, ...]]
    completions: list[Completion]
    texts: list[str]
    played: list[list[tuple[tuple[int, ...], Completion]]] = dataclasses.field(default_factory=list)

    @property
    def branches(self) -> list[Branch]:
        """The sequences that are trained on, in the order of their completions."""
        G = len(self.completions) // len(self.prompts)
        if not self.played:
            return [Branch(i, i // G, self.prompts[i // G], each) for i, each in enumerate(self.completions)]
        return [Branch(i, i // G, *each) for i, several in enumerate(self.played) for each in several]

    @property
    def replies(self) -> list[Any]:
        """Replies as rewards read them: the text of each completion, or the messages of a trajectory."""
        return [
            text if c.sampled is None else [*c.messages] for text, c in zip(self.texts, self.completions, strict=True)
        ]

    @property
    def counts(self) -> tuple[float, float, float]:
        """(tokens fed, tokens sampled, query-key pairs) of sampling the groups, each prompt fed once."""
        prompts = np.array([len(prompt) for prompt in self.prompts], float)
        lengths = np.array([len(c.tokens) for c in self.completions], float)
        sampled = float(sum(c.length for c in self.completions))
        behind = np.repeat(prompts, len(lengths) // len(prompts))
        pairs = (prompts * (prompts + 1) / 2).sum() + (lengths * behind + lengths * (lengths + 1) / 2).sum()
        return float(prompts.sum() + lengths.sum()), sampled, float(pairs)

    def columns(self, group_size: int) -> dict[str, list[Any]]:
        """The data's columns without `prompt`, a value per completion; None where a row lacks one."""
        names = dict.fromkeys(key for row in self.rows for key in row if key != "prompt")
        return {name: [row.get(name) for row in self.rows for _ in range(group_size)] for name in names}

    def pick(self, numbers: np.ndarray, group_size: int) -> Groups:
        """The groups of some prompts, by index."""
        members = [p * group_size + g for p in numbers for g in range(group_size)]
        return Groups(
            [self.rows[p] for p in numbers],
            [self.prompts[p] for p in numbers],
            [self.completions[i] for i in members],
            [self.texts[i] for i in members],
            [self.played[i] for i in members] if self.played else [],
        )


def join_groups(parts: Sequence[Groups]) -> Groups:
    """Concatenates groups."""
    lists = ([item for part in parts for item in getattr(part, f.name)] for f in dataclasses.fields(Groups))
    return Groups(*lists)


def join_scores(parts: Sequence[Scores]) -> Scores:
    """Concatenates scores; averages extra metrics, ignoring NaN."""
    names = dict.fromkeys(name for part in parts for name in part.metrics)
    told = {name: [v for part in parts if not np.isnan(v := part.metrics.get(name, np.nan))] for name in names}
    return Scores(
        np.concatenate([part.total for part in parts]),
        {name: np.concatenate([part.by_name[name] for part in parts]) for name in parts[0].by_name},
        np.concatenate([part.out_of_loss for part in parts]),
        [call for part in parts for call in part.calls],
        {name: float(np.mean(values)) if values else float("nan") for name, values in told.items()},
    )


def describe_rewards(scores: Scores, group_size: int) -> dict[str, float]:
    """Mean and standard deviation of the total and of each reward; `reward_std` is the mean deviation within groups, as
    in TRL.
    """
    metrics = {
        "reward": float(scores.total.mean()),
        "reward_std": float(scores.total.reshape(-1, group_size).std(axis=1, ddof=1).mean()),
    }
    for name, values in scores.by_name.items():
        applied = values[~np.isnan(values)]
        metrics[f"rewards/{name}/mean"] = float(applied.mean()) if len(applied) else float("nan")
        metrics[f"rewards/{name}/std"] = float(applied.std(ddof=1)) if len(applied) > 1 else 0.0
    return metrics


def describe_lengths(groups: Groups) -> dict[str, float]:
    """Lengths of completions in sampled tokens, and the share that reached the limit."""
    return {
        "completions/mean_length": float(np.mean([c.length for c in groups.completions])),
        "completions/clipped_ratio": float(np.mean([c.finish_reason == "length" for c in groups.completions])),
    }


def describe_samples(
    groups: Groups, scores: Scores, rewards: Sequence[Reward], advantages_PG: np.ndarray
) -> list[dict[str, Any]]:
    """The rows of samples.jsonl: completions first, then the calls that rewards made to a model (`call_of`)."""
    G = advantages_PG.shape[1]
    rules = explain_values(rewards, scores, groups.replies, groups.columns(G))
    answers = [
        {
            "prompt": completion.prompt or groups.rows[i // G]["prompt"],
            "completion": text,
            **({} if completion.sampled is None else {"messages": [*completion.messages]}),
            **_find_solution(groups.rows[i // G]),
            "reward": float(scores.total[i]),
            "rewards": {name: None if np.isnan(v[i]) else float(v[i]) for name, v in scores.by_name.items()},
            **({"rules": rules[i]} if rules[i] else {}),
            "advantage": float(advantages_PG[i // G, i % G]),
            "length": completion.length,
            "finish_reason": completion.finish_reason,
        }
        for i, (text, completion) in enumerate(zip(groups.texts, groups.completions, strict=True))
    ]
    return answers + [
        {"call_of": call["reward"]} | {k: v for k, v in call.items() if k != "reward"} for call in scores.calls
    ]


def _find_solution(row: dict[str, Any]) -> dict[str, Any]:
    """The reference answer of a problem, where it is one and short: tests of a program are not."""
    solution = row.get("solution")
    is_short = isinstance(solution, int | float) or (isinstance(solution, str) and len(solution) <= SOLUTION_LIMIT)
    return {"solution": solution} if is_short and solution != "" else {}
