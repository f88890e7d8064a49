"""Data types shared by all floors, and the axis legend of the project.

Axis letters, the same in einsum strings, in suffixes (`q_BTNH`) and in checked annotations:

    P  prompts of a step            G  samples a prompt (group size)     B  rows (often P * G)
    T  query positions              S  key / cache positions             R  targets a row (positions with a loss)
    D  model width                  N  query heads                       K  key-value heads
    H  head width                   C  latent width (MLA)                F  feed-forward width
    E  experts                      A  active experts a token            V  vocabulary            L  layers

Letters joined are one array (`k_BKSH`); letters joined by underscores are nested Python lists (`tokens_P_G_T`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from r1jax.core.errors import UserError

FinishReason = Literal["stop", "length"]
EndReason = Literal["stop", "length", "turns", "fault"]  # turns: the largest number of them; fault: of an environment


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Sampling as a config says it: the keys that rollouts, judges, generation and evaluation share.

    Attributes:
      temperature: sampling temperature; 0 is greedy.
      top_k: number of most likely tokens to sample from; 0 is all.
      top_p: probability mass of the most likely tokens to sample from; 1 is all.
      min_p: probability that a token needs as a share of the likeliest one's; 0 is none.
      max_new_tokens: largest number of tokens that are sampled for a prompt.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int = 256

    def check_sampling(self, section: str = "", *, lowest: str = "must be 0 (greedy) or more") -> None:
        """Raises UserError, naming `section` and key, for a value out of its range.

        lowest: the rule for the temperature; 0 is allowed where it says so.
        """
        greedy = self.temperature == 0 and "0" in lowest
        rules = {
            "temperature": (greedy or 0 < self.temperature < math.inf, lowest),
            "top_k": (0 <= self.top_k < 2**31, "must be 0 (off) or more" if self.top_k < 0 else "must be below 2**31"),
            "top_p": (0 < self.top_p <= 1, "must be above 0 and at most 1 (off)"),
            "min_p": (0 <= self.min_p <= 1, "must be from 0 (off) to 1"),
            "max_new_tokens": (1 <= self.max_new_tokens <= 2**24, "must be from 1 to 2**24"),
        }
        for name, (is_right, rule) in rules.items():
            if not is_right:
                raise UserError(f"{section}{name} {rule}, got {getattr(self, name)!r}")

    def sampling(self, stop_ids: tuple[int, ...]) -> Sampling:
        """Sampling parameters of one request."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.max_new_tokens, stop_ids)


@dataclasses.dataclass(frozen=True)
class Sampling(SamplingConfig):
    """Sampling parameters of one request: those of a config, and the ids that end it."""

    stop_ids: tuple[int, ...] = ()

    @property
    def is_filtered(self) -> bool:
        """Whether top-k, top-p or min-p cuts the distribution."""
        return bool(self.top_k or self.top_p < 1 or self.min_p)


@dataclasses.dataclass(frozen=True)
class Request:
    """One sequence to sample: token ids of the prompt, sampling parameters, and the seed, which alone determines the
    result for given weights.
    """

    tokens: tuple[int, ...]
    sampling: Sampling
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Completion:
    """Result of a request: sampled ids (the stop id included as last), their log-probs, and why sampling ended.

    experts [tokens, L, A]: for each id, the experts selected for the token before it, from whose state the id was
    sampled (None: not recorded). ages [tokens]: for each id, the steps between the weights that sampled it and those
    that are trained (None: 0).

    A trajectory, of several turns, holds all tokens behind the prompt; sampled: which of them were sampled (None: all);
    the others were given, and have log-prob 0. messages: what it reads as, without the prompt. prompt: as it was put,
    where its environment added to it. environment: what rewards may read of it; payment: the reward that it gives.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: EndReason
    experts: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    ages: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    sampled: tuple[bool, ...] | None = None
    messages: tuple[dict[str, Any], ...] = ()
    prompt: Any = None
    environment: Any = dataclasses.field(default=None, compare=False, repr=False)
    payment: float | None = None

    @property
    def length(self) -> int:
        """Number of sampled tokens."""
        return len(self.tokens) if self.sampled is None else sum(self.sampled)

    @property
    def places(self) -> np.ndarray:
        """Places of the sampled tokens among all [length]."""
        return np.arange(len(self.tokens)) if self.sampled is None else np.flatnonzero(self.sampled)

    @property
    def sampled_logprobs(self) -> tuple[float, ...]:
        """Log-probs of the sampled tokens."""
        if self.sampled is None:
            return self.logprobs
        return tuple(value for value, is_sampled in zip(self.logprobs, self.sampled, strict=True) if is_sampled)


@dataclasses.dataclass(frozen=True)
class Program:
    """The call `function(*arguments, **keywords)` of a jitted function.

    arguments: pytrees of `jax.ShapeDtypeStruct` with shardings. keywords: static. useful_flops: by formula, of one call
    on all devices together; for decoding, of one token in every slot. resident: device-resident arrays that are not an
    argument. layout: a `sharding.Layout` to trace and compile it in (None: the current one).
    """

    name: str
    function: Any
    arguments: tuple
    useful_flops: float
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)
    resident: Any = ()
    layout: Any = None

    def rename(self, name: str) -> Program:
        """The same program under another name."""
        return dataclasses.replace(self, name=name)


def hold(programs: Sequence[Program], resident: dict[str, Any]) -> list[Program]:
    """The programs with their `resident` arrays, by the program's name."""
    return [dataclasses.replace(program, resident=resident.get(program.name, ())) for program in programs]
