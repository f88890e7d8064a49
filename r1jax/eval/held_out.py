"""Evaluation on held-out problems during a run: sampled and greedy, strict and lenient, each with its standard error.

Strict: every reward named in `strict` must be 1, as in training. Lenient accepts the last number anywhere, so a gain in
format alone shows as strict approaching lenient; `format_rate` measures the format directly. The other rewards that a
run trains with are measured by their names. A score that applies to no problem (there is no solution to compare with)
is left out.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.core import distributed
from r1jax.core.seeds import derive_seed
from r1jax.core.structs import Completion, Request, Sampling
from r1jax.eval.score import mean_and_stderr
from r1jax.rewards.base import Reward, load_rewards, score
from r1jax.rewards.episodes.played import score_played

# Names of measures `eval/NAME/MEASURE`; a reward of one of these names is not measured by it.
RESERVED = ("pass@1", "greedy", "lenient", "greedy_lenient", "format_rate", "greedy_format_rate", "mean_length")

Generate = Callable[[list[Request]], list[Completion]]


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The `eval` section: when and how held-out problems are answered and scored.

    Attributes:
      name: name of the problems in metrics: `eval/NAME/...`; "" is that of the task (addition, the file's name).
      every_steps: steps between evaluations; 0 evaluates before and after the run only.
      temperature: temperature of the sampled answers; the other pass is greedy.
      strict: names of the rewards that must all be 1 for an answer to count.
      lenient: name of the reward of the lenient score.
      format: name of the reward that measures the format of a reply; "" is none.
    """

    name: str = "held_out"
    every_steps: int = 0
    temperature: float = 1.0
    strict: tuple[str, ...] = ("answer_reward",)
    lenient: str = "number_reward"
    format: str = ""


@dataclasses.dataclass(frozen=True)
class Problems:
    """Held-out rows, their encoded prompts, the rewards that score them by name, and the other rewards of the run."""

    rows: Sequence[dict[str, Any]]
    tokens: Sequence[tuple[int, ...]]
    scorers: dict[str, Reward]
    rewards: Sequence[Reward] = ()


def make_problems(
    rows: Sequence[dict[str, Any]],
    encode: Callable[[Any], tuple[int, ...]],
    config: EvalConfig,
    rewards: Sequence[Reward] = (),
) -> Problems:
    """Held-out rows with encoded prompts and scorers; `encode` maps a prompt to ids. Raises UserError if no reward is
    named.

    rewards: those that the run trains with. Left out are scorers that need a solution where no row has one, and rewards
    that ask a model or compare the completions of a group.
    """
    names = {*config.strict, config.lenient, config.format} - {""}
    scorers = {name: load_rewards({name: 1.0})[0] for name in sorted(names)}
    if not any("solution" in row for row in rows):
        scorers = {name: reward for name, reward in scorers.items() if "solution" not in _needed(reward)}
    known = {reward.name for reward in scorers.values()}
    own = [r for r in rewards if r.name not in known | {*RESERVED} and r.make is None and "group_ids" not in _taken(r)]
    return Problems(rows, [encode(row["prompt"]) for row in rows], scorers, own)


def _taken(reward: Reward) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(reward.function).parameters


def _needed(reward: Reward) -> set[str]:
    """Names of the columns without which a reward cannot be called."""
    required = {name for name, parameter in _taken(reward).items() if parameter.default is parameter.empty}
    return required - {*reward.arguments}


def evaluate(
    generate: Generate,
    decode: Callable[[Sequence[int]], str],
    problems: Problems,
    config: EvalConfig,
    sampling: Sampling,
    *,
    seed: int,
) -> dict[str, float]:
    """Metrics `eval/{name}/...`: pass@1 (sampled), greedy, lenient (sampled), greedy_lenient, format_rate, and stderr
    of each.

    Both passes go through one call, so that every prompt is prefilled once.
    """
    ways = [dataclasses.replace(sampling, temperature=temperature) for temperature in (config.temperature, 0.0)]
    requests = [
        Request(tokens, way, derive_seed("eval", seed, index))
        for way in ways
        for index, tokens in enumerate(problems.tokens)
    ]
    completions = generate(requests)
    count = len(problems.rows)
    texts, ids = [decode(c.tokens) for c in completions], [list(c.tokens) for c in completions]
    played = completions if completions and completions[0].sampled is not None else []
    sampled = judge(problems, config, texts[:count], ids[:count], played[:count])
    greedy = judge(problems, config, texts[count:], ids[count:], played[count:])
    values = {"pass@1": sampled.get("strict"), "greedy": greedy.get("strict")}
    values |= {"lenient": sampled.get("lenient"), "greedy_lenient": greedy.get("lenient")}
    values |= {"format_rate": sampled.get("format"), "greedy_format_rate": greedy.get("format")}
    values |= measure_rewards(problems, texts[:count], ids[:count], played[:count])
    if played:
        turns = [sum(message["role"] == "assistant" for message in c.messages) for c in played[:count]]
        values["mean_turns"] = np.array(turns, float)
    metrics, prefix = {}, f"eval/{config.name or EvalConfig.name}"
    for name, value in values.items():
        if value is not None:
            key = f"{prefix}/{name}"
            metrics[key], metrics[f"{key}_stderr"] = mean_and_stderr(value)
    metrics[f"{prefix}/mean_length"] = float(np.mean([c.length for c in completions[:count]]))
    metrics[f"{prefix}/problems"] = count
    return metrics


def measure_rewards(
    problems: Problems,
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    played: Sequence[Completion] = (),
) -> dict[str, np.ndarray | None]:
    """Values of the run's own rewards by name, of the problems to which each applies; None if that is none of them."""
    if not problems.rewards:
        return {}
    values = _score(problems, problems.rewards, texts, ids, played)
    applied = {name: value[~np.isnan(value)] for name, value in values.items()}
    return {name: value if len(value) else None for name, value in applied.items()}


def judge(
    problems: Problems,
    config: EvalConfig,
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    played: Sequence[Completion] = (),
) -> dict[str, np.ndarray]:
    """strict, lenient and format of one text per problem, each [problems] of 0 or 1, where they apply to a problem.

    played: the trajectories, where there is an environment: rewards then read their messages.
    """
    values = _score(problems, list(problems.scorers.values()), texts, ids, played)
    by_name = {name: values[reward.name] for name, reward in problems.scorers.items()}
    result = {}
    for score_name, wanted in (("strict", config.strict), ("lenient", (config.lenient,)), ("format", (config.format,))):
        found = [by_name[name] for name in wanted if name in by_name]
        if len(found) == len(wanted) and not any(np.isnan(value).all() for value in found):
            result[score_name] = np.prod([np.nan_to_num(value) == 1.0 for value in found], axis=0, dtype=np.float64)
    return result


def _score(
    problems: Problems,
    rewards: Sequence[Reward],
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    played: Sequence[Completion],
) -> dict[str, np.ndarray]:
    """Values [problems] of each reward by its name, NaN where it does not apply."""
    if not rewards:
        return {}
    columns = {key: [row.get(key) for row in problems.rows] for key in problems.rows[0] if key != "prompt"}
    if played:
        values = {reward.name: np.full(len(played), np.nan) for reward in rewards}
        if distributed.is_writer():
            values = score_played(rewards, [row["prompt"] for row in problems.rows], played, columns).by_name
        return distributed.from_first(values)
    return score(
        rewards,
        prompts=[row["prompt"] for row in problems.rows],
        completions=texts,
        completion_ids=ids,
        columns=columns,
        processes=distributed,
    ).by_name
