"""Evaluation on held-out problems during a run: sampled and greedy, strict and lenient, each with its standard error.

Strict: every reward named in `strict` must be 1, as in training. Lenient accepts the last number anywhere, so a gain in
format alone shows as strict approaching lenient; `format_rate` measures the format directly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from r1jax.core.seeds import derive_seed
from r1jax.core.structs import Completion, Request, Sampling
from r1jax.eval.score import mean_and_stderr
from r1jax.rewards.base import Reward, load_rewards, score

Generate = Callable[[list[Request]], list[Completion]]


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The `eval` section: when and how held-out problems are answered and scored.

    Attributes:
      name: name of the problems in metrics: `eval/NAME/...`.
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
    """Held-out rows, their encoded prompts, and the rewards that score them by name."""

    rows: Sequence[dict[str, Any]]
    tokens: Sequence[tuple[int, ...]]
    scorers: dict[str, Reward]


def make_problems(
    rows: Sequence[dict[str, Any]], encode: Callable[[Any], tuple[int, ...]], config: EvalConfig
) -> Problems:
    """Held-out rows with encoded prompts and scorers; `encode` maps a prompt to ids. Raises UserError if no reward is
    named.
    """
    names = {*config.strict, config.lenient, config.format} - {""}
    scorers = {name: load_rewards({name: 1.0})[0] for name in sorted(names)}
    return Problems(rows, [encode(row["prompt"]) for row in rows], scorers)


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
    sampled = judge(problems, config, texts[:count], ids[:count])
    greedy = judge(problems, config, texts[count:], ids[count:])
    values = {
        "pass@1": sampled["strict"],
        "greedy": greedy["strict"],
        "lenient": sampled["lenient"],
        "greedy_lenient": greedy["lenient"],
    }
    if config.format:
        values |= {"format_rate": sampled["format"], "greedy_format_rate": greedy["format"]}
    metrics = {}
    for name, value in values.items():
        key = f"eval/{config.name}/{name}"
        metrics[key], metrics[f"{key}_stderr"] = mean_and_stderr(value)
    metrics[f"eval/{config.name}/mean_length"] = float(np.mean([len(c.tokens) for c in completions[:count]]))
    metrics[f"eval/{config.name}/problems"] = count
    return metrics


def judge(
    problems: Problems, config: EvalConfig, texts: Sequence[str], ids: Sequence[Sequence[int]]
) -> dict[str, np.ndarray]:
    """strict, lenient and (where config.format names a reward) format of one text per problem, each [problems] of
    0 or 1.
    """
    columns = {key: [row.get(key) for row in problems.rows] for key in problems.rows[0] if key != "prompt"}
    values = score(
        list(problems.scorers.values()),
        prompts=[row["prompt"] for row in problems.rows],
        completions=texts,
        completion_ids=ids,
        columns=columns,
    ).by_name
    right = {name: (np.nan_to_num(value) == 1.0).astype(np.float64) for name, value in values.items()}
    names = {name: reward.name for name, reward in problems.scorers.items()}
    strict = np.prod([right[names[name]] for name in config.strict], axis=0)
    result = {"strict": strict, "lenient": right[names[config.lenient]]}
    if config.format:
        result["format"] = right[names[config.format]]
    return result
