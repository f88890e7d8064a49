"""Filters from a teacher's samples to a training set: correct, readable, new and of the right difficulty.

Filters apply in a fixed order, each with a count of dropped samples: truncated, pass rate, reward, length, language,
repetition, contamination, exact and near duplicates, and last the number of samples per prompt. Rewards are given with
the samples.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from r1jax.core.atomic_file import replace_file
from r1jax.core.errors import UserError
from r1jax.data.overlap import Contamination, find_near_duplicates, read_texts, split_words
from r1jax.text.language import LANGUAGES, language_share

Prompt = str | list[dict[str, str]]
REPEATED_WORDS = 6  # n-gram size for measuring repetition


@dataclasses.dataclass(frozen=True)
class Trace:
    """One sample of a teacher: `group` is the index of its prompt, `length` is in tokens."""

    group: int
    prompt: Prompt
    completion: str
    reward: float
    length: int
    finish_reason: str = "stop"


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """The `filters` section: which samples become the set to learn from.

    Attributes:
      min_reward: smallest reward of a kept sample.
      min_pass_rate: lower bound on a prompt's mean reward, itself excluded; None is no bound.
      max_pass_rate: upper bound on a prompt's mean reward, itself excluded; None is no bound.
      min_tokens: shortest completion in tokens; 0 is no bound.
      max_tokens: longest completion in tokens; 0 is no bound. Completions cut off at the sampler's limit are always
        dropped.
      language: code of the language that a completion must be in (`en`, `zh`); None is any.
      min_language_share: share of its words that must be in that language.
      max_repetition: largest share of a completion's six-word sequences that repeat an earlier one.
      benchmarks: files whose texts must not be trained on.
      ngram: number of words in a row shared with a benchmark that drop a sample.
      near_duplicates: similarity (0 to 1) from which a sample counts as a duplicate; 0 drops equal ones only.
      samples_per_prompt: number of samples kept of one prompt, the first ones; 0 is all.
    """

    min_reward: float = 1.0
    min_pass_rate: float | None = None
    max_pass_rate: float | None = None
    min_tokens: int = 0
    max_tokens: int = 0
    language: str | None = None
    min_language_share: float = 0.95
    max_repetition: float = 0.3
    benchmarks: tuple[str, ...] = ()
    ngram: int = 10
    near_duplicates: float = 0.0
    samples_per_prompt: int = 0

    def __post_init__(self) -> None:
        if self.language is not None and self.language not in LANGUAGES:
            raise UserError(f"config.filters.language must be one of {', '.join(LANGUAGES)}, got {self.language!r}")
        for name in ("min_language_share", "max_repetition", "near_duplicates"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"config.filters.{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.ngram < 1:
            raise UserError(f"config.filters.ngram must be at least 1, got {self.ngram}")


def filter_traces(traces: Sequence[Trace], config: FilterConfig) -> tuple[list[Trace], dict[str, Any]]:
    """The kept samples in order, and statistics: `dropped` by filter, counts and lengths of input and output.

    Raises UserError for a benchmark file that cannot be read.
    """
    steps: dict[str, Callable[[list[Trace]], list[bool]]] = {
        "cut_off": lambda kept: [trace.finish_reason != "length" for trace in kept],
        "pass_rate": lambda kept: _within_pass_rate(kept, traces, config),
        "reward": lambda kept: [trace.reward >= config.min_reward for trace in kept],
        "length": lambda kept: [_fits(trace.length, config.min_tokens, config.max_tokens) for trace in kept],
        "language": lambda kept: [_is_in_language(trace.completion, config) for trace in kept],
        "repetition": lambda kept: [measure_repetition(t.completion) <= config.max_repetition for t in kept],
        "contamination": lambda kept: _are_clean(kept, config),
        "duplicate": _are_new,
        "near_duplicate": lambda kept: _are_different(kept, config.near_duplicates),
        "samples_per_prompt": lambda kept: _are_first(kept, config.samples_per_prompt),
    }
    kept, dropped = list(traces), {}
    for name, judge in steps.items():
        good = judge(kept)
        dropped[name] = good.count(False)
        kept = [trace for trace, is_good in zip(kept, good, strict=True) if is_good]
    return kept, {"input": _describe(traces), "dropped": dropped, "output": _describe(kept)}


def write_set(path: str | pathlib.Path, traces: Sequence[Trace], statistics: dict[str, Any]) -> None:
    """Writes rows of `prompt` and `completion` to `path` and the statistics to NAME.stats.json, each atomically."""
    path = pathlib.Path(path)
    rows = [{"prompt": trace.prompt, "completion": trace.completion} for trace in traces]
    texts = {
        statistics_file(path): json.dumps(statistics, indent=2) + "\n",
        path: "".join(json.dumps(row) + "\n" for row in rows),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    for place, text in texts.items():
        replace_file(place, text)


def statistics_file(path: pathlib.Path) -> pathlib.Path:
    """Path NAME.stats.json for NAME.jsonl."""
    return path.with_suffix(".stats.json")


def measure_repetition(text: str) -> float:
    """Share of six-word sequences that occur earlier in the text: near 1 for a loop, 0 for a short text."""
    words = split_words(text)
    grams = list(zip(*(words[i:] for i in range(REPEATED_WORDS)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _within_pass_rate(kept: Sequence[Trace], traces: Sequence[Trace], config: FilterConfig) -> list[bool]:
    """Whether the mean reward of all samples of the prompt, truncated ones included, is within the bounds."""
    rewards: dict[int, list[float]] = {}
    for trace in traces:
        rewards.setdefault(trace.group, []).append(trace.reward)
    rates = {group: sum(values) / len(values) for group, values in rewards.items()}
    low, high = config.min_pass_rate, config.max_pass_rate
    return [(low is None or rates[trace.group] > low) and (high is None or rates[trace.group] < high) for trace in kept]


def _fits(length: int, low: int, high: int) -> bool:
    return length >= low and (not high or length <= high)


def _is_in_language(text: str, config: FilterConfig) -> bool:
    share = None if config.language is None else language_share(text, config.language)
    return share is None or share >= config.min_language_share


def _are_clean(kept: Sequence[Trace], config: FilterConfig) -> list[bool]:
    if not config.benchmarks:
        return [True] * len(kept)
    contamination = Contamination(read_texts(config.benchmarks, key="config.filters.benchmarks"), config.ngram)
    return [_question(trace) not in contamination and trace.completion not in contamination for trace in kept]


def _are_new(kept: Sequence[Trace]) -> list[bool]:
    seen, new = set[str](), []
    for trace in kept:
        text = " ".join(f"{_question(trace)}\n{trace.completion}".split())
        new.append(text not in seen)
        seen.add(text)
    return new


def _are_different(kept: Sequence[Trace], similarity: float) -> list[bool]:
    if not similarity:
        return [True] * len(kept)
    texts = [f"{_question(trace)}\n{trace.completion}" for trace in kept]
    return [not marked for marked in find_near_duplicates(texts, similarity)]


def _are_first(kept: Sequence[Trace], count: int) -> list[bool]:
    seen: dict[int, int] = {}
    first = []
    for trace in kept:
        seen[trace.group] = seen.get(trace.group, 0) + 1
        first.append(not count or seen[trace.group] <= count)
    return first


def _question(trace: Trace) -> str:
    """The question of a sample: its prompt text, or the user's messages."""
    if isinstance(trace.prompt, str):
        return trace.prompt
    return "\n".join(turn["content"] for turn in trace.prompt if turn["role"] == "user")


def _describe(traces: Sequence[Trace]) -> dict[str, float]:
    lengths = [trace.length for trace in traces] or [0]
    return {
        "samples": len(traces),
        "prompts": len({trace.group for trace in traces}),
        "mean_reward": float(np.mean([trace.reward for trace in traces])) if traces else 0.0,
        "mean_tokens": float(np.mean(lengths)),
        "median_tokens": float(np.median(lengths)),
        "max_tokens": max(lengths),
    }
