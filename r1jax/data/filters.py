"""Filters from a teacher's samples to a training set: correct, readable, new and of the right difficulty.

Filters apply in a fixed order, each with a count of dropped samples: truncated, pass rate, reward, length, language,
repetition, contamination, exact and near duplicates, and last the number of samples per prompt. Rewards are given with
the samples.

Samples come in chunks of whole prompts. `Screen` applies the filters that need no other prompt, so that processes can
share a chunk; `Selection` applies the others in order, and remembers digests of texts, not texts.
"""

from __future__ import annotations

import array
import base64
import collections
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from r1jax.core.errors import UserError
from r1jax.data.overlap import Contamination, NearDuplicates, read_texts, sign, split_words
from r1jax.text.language import LANGUAGES, language_share

Prompt = str | list[dict[str, str]]
REPEATED_WORDS = 6  # n-gram size for measuring repetition
FILTERS = (
    "cut_off",
    "pass_rate",
    "reward",
    "length",
    "language",
    "repetition",
    "contamination",
    "duplicate",
    "near_duplicate",
    "samples_per_prompt",
)


@dataclasses.dataclass(frozen=True)
class Trace:
    """One sample of a teacher: `group` is the index of its prompt, `length` is in tokens. row: of the set, for a
    trajectory.
    """

    group: int
    prompt: Prompt
    completion: str
    reward: float
    length: int
    finish_reason: str = "stop"
    row: dict[str, Any] | None = None


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
      rows_per_shard: rows of a file of the set, `set-00000.jsonl` and so on; 0 makes one file, `set.jsonl`.
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
    rows_per_shard: int = 0

    def __post_init__(self) -> None:
        if self.language is not None and self.language not in LANGUAGES:
            raise UserError(f"config.filters.language must be one of {', '.join(LANGUAGES)}, got {self.language!r}")
        for name in ("min_language_share", "max_repetition", "near_duplicates"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"config.filters.{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.ngram < 1:
            raise UserError(f"config.filters.ngram must be at least 1, got {self.ngram}")
        if self.rows_per_shard < 0:
            raise UserError(f"config.filters.rows_per_shard must be at least 0, got {self.rows_per_shard}")


class Finding(NamedTuple):
    """Judgement of one sample without a look at other prompts.

    Attributes:
      dropped: filter that drops it; "" if none does.
      digest: 128 bits of prompt and completion without regard to white space, in hexadecimal; "" if it is dropped.
      signature: MinHash signature in base64, where near duplicates are looked for; "" if it is dropped.
    """

    dropped: str
    digest: str = ""
    signature: str = ""


class Screen:
    """The filters up to contamination. Raises UserError for a benchmark file that cannot be read."""

    def __init__(self, config: FilterConfig):
        self._config = config
        texts = read_texts(config.benchmarks, key="config.filters.benchmarks") if config.benchmarks else []
        self._contamination = Contamination(texts, config.ngram)

    def examine(self, traces: Sequence[Trace]) -> list[Finding]:
        """A finding for each sample; of each prompt all samples must be given, as they make its pass rate."""
        rewards: dict[int, list[float]] = {}
        for trace in traces:
            rewards.setdefault(trace.group, []).append(trace.reward)
        rates = {group: sum(values) / len(values) for group, values in rewards.items()}
        return [self._examine(trace, rates[trace.group]) for trace in traces]

    def _examine(self, trace: Trace, rate: float) -> Finding:
        if dropped := self._find_fault(trace, rate):
            return Finding(dropped)
        text = f"{_question(trace)}\n{trace.completion}"
        plain = " ".join(text.split()).encode("utf-8", "surrogatepass")
        signature = base64.b64encode(sign(text).tobytes()).decode() if self._config.near_duplicates else ""
        return Finding("", hashlib.blake2b(plain, digest_size=16).hexdigest(), signature)

    def _find_fault(self, trace: Trace, rate: float) -> str:
        """The first filter that drops the sample; "" if none does."""
        config = self._config
        low, high = config.min_pass_rate, config.max_pass_rate
        if trace.finish_reason == "length":
            return "cut_off"
        if not ((low is None or rate > low) and (high is None or rate < high)):
            return "pass_rate"
        if not trace.reward >= config.min_reward:
            return "reward"
        if trace.length < config.min_tokens or (config.max_tokens and trace.length > config.max_tokens):
            return "length"
        share = None if config.language is None else language_share(trace.completion, config.language)
        if share is not None and not share >= config.min_language_share:
            return "language"
        if not measure_repetition(trace.completion) <= config.max_repetition:
            return "repetition"
        if config.benchmarks and (_question(trace) in self._contamination or trace.completion in self._contamination):
            return "contamination"
        return ""


class Selection:
    """The filters that look at earlier samples, and statistics of all; its state is a function of the samples so far.

    Memory: about 150 bytes a sample, and that of `NearDuplicates` where these are looked for.
    """

    def __init__(self, config: FilterConfig):
        self._config = config
        self._seen: set[bytes] = set()
        self._near = NearDuplicates(config.near_duplicates)
        self._dropped: collections.Counter[str] = collections.Counter()
        self._input, self._output = _Tally(), _Tally()

    def decide(self, traces: Sequence[Trace], findings: Sequence[Finding]) -> list[str]:
        """For each sample the filter that drops it, "" for a kept one; samples in order, all of a prompt together."""
        if not traces:
            return []
        dropped = []
        kept = collections.Counter[int]()
        for trace, finding in zip(traces, findings, strict=True):
            dropped.append(finding.dropped or self._compare(finding) or self._limit(kept[trace.group]))
            kept[trace.group] += not dropped[-1]
        groups, rewards, lengths = zip(*((t.group, t.reward, t.length) for t in traces), strict=True)
        self._count(groups, rewards, lengths, dropped)
        return dropped

    def restore(
        self, rewards: Sequence[float], lengths: Sequence[int], findings: Sequence[Finding], dropped: Sequence[str]
    ) -> None:
        """Takes over the samples of one prompt that were decided before."""
        for finding, why in zip(findings, dropped, strict=True):
            if finding.digest:
                self._seen.add(bytes.fromhex(finding.digest))
            if finding.signature and why not in ("duplicate", "near_duplicate"):
                self._near.remember(_read_signature(finding))
        self._count([0] * len(dropped), rewards, lengths, dropped)

    @property
    def kept(self) -> int:
        """Number of samples kept so far."""
        return len(self._output.rewards)

    @property
    def shares(self) -> dict[str, float]:
        """Share of the samples so far that each filter dropped, for those that dropped any, and `kept`."""
        total = len(self._input.rewards)
        counts = {"kept": self.kept, **{name: self._dropped[name] for name in FILTERS if self._dropped[name]}}
        return {name: count / total for name, count in counts.items()} if total else {}

    def statistics(self) -> dict[str, Any]:
        """`dropped` by filter, and counts and lengths of `input` and `output`."""
        dropped = {name: self._dropped[name] for name in FILTERS}
        return {"input": self._input.describe(), "dropped": dropped, "output": self._output.describe()}

    def _compare(self, finding: Finding) -> str:
        digest = bytes.fromhex(finding.digest)
        if digest in self._seen:
            return "duplicate"
        self._seen.add(digest)
        near = finding.signature and self._near.mark(_read_signature(finding))
        return "near_duplicate" if near else ""

    def _limit(self, kept: int) -> str:
        return "samples_per_prompt" if 0 < self._config.samples_per_prompt <= kept else ""

    def _count(
        self, groups: Sequence[int], rewards: Sequence[float], lengths: Sequence[int], dropped: Sequence[str]
    ) -> None:
        self._dropped.update(filter(None, dropped))
        self._input.add(groups, rewards, lengths)
        kept = [place for place, why in enumerate(dropped) if not why]
        self._output.add(
            [groups[place] for place in kept], [rewards[place] for place in kept], [lengths[place] for place in kept]
        )


def measure_repetition(text: str) -> float:
    """Share of six-word sequences that occur earlier in the text: near 1 for a loop, 0 for a short text."""
    words = split_words(text)
    grams = list(zip(*(words[i:] for i in range(REPEATED_WORDS)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _question(trace: Trace) -> str:
    """The question of a sample: its prompt text, or the user's messages."""
    if isinstance(trace.prompt, str):
        return trace.prompt
    return "\n".join(turn["content"] for turn in trace.prompt if turn["role"] == "user")


def _read_signature(finding: Finding) -> np.ndarray:
    return np.frombuffer(base64.b64decode(finding.signature), np.uint32)


class _Tally:
    """Rewards and lengths of samples, eight bytes each."""

    def __init__(self) -> None:
        self.rewards, self.lengths, self.prompts = array.array("d"), array.array("q"), 0

    def add(self, groups: Sequence[int], rewards: Sequence[float], lengths: Sequence[int]) -> None:
        self.prompts += len(set(groups))
        self.rewards.extend(rewards)
        self.lengths.extend(lengths)

    def describe(self) -> dict[str, float]:
        lengths = np.array(self.lengths if self.lengths else [0])
        return {
            "samples": len(self.rewards),
            "prompts": self.prompts,
            "mean_reward": float(np.mean(self.rewards)) if self.rewards else 0.0,
            "mean_tokens": float(np.mean(lengths)),
            "median_tokens": float(np.median(lengths)),
            "max_tokens": int(lengths.max()),
        }
