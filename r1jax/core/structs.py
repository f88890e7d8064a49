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
from typing import Literal

import numpy as np

FinishReason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How one request is sampled. `temperature` 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0 leave the filter off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int = 256
    stop_ids: tuple[int, ...] = ()


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
    sampled (None: not recorded).
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    experts: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
