"""A model as OpenAI's routes need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from r1jax.core.structs import Sampling
from r1jax.rollout.continuous import ContinuousConfig
from r1jax.serving.requests import SamplingRequest
from r1jax.text.tokenizer import Tokenizer


class Host(Protocol):
    """A model for clients: its name and vocabulary, prompts to ids, and the choice of sampling and seed.

    stop_ids: that end every reply. config: of the engine.
    """

    name: str
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    config: ContinuousConfig

    def score(self, tokens: Sequence[int], alternatives: int) -> tuple[list[float], list[dict[int, float]]]:
        """Log-prob of each token after the first, and the likeliest ids at its place."""

    def encode_messages(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> tuple[int, ...]:
        """Ids of a conversation. Raises UserError for messages that the model does not take."""

    def encode_prompt(self, prompt: str | Sequence[int], *, add_special: bool = True) -> tuple[int, ...]:
        """Ids of a text as it is, or the ids themselves. Raises UserError for ids that the model does not have."""

    def choose_sampling(self, request: SamplingRequest, limit: int | None, prompt: Sequence[int]) -> Sampling:
        """Sampling of a request. limit: most tokens of the reply, where it says so. Raises UserError if it is too long
        with its prompt.
        """

    def choose_seed(self, request: SamplingRequest) -> int:
        """Seed of a request."""

    def show(self, token: int) -> str:
        """Text of one id, special tokens included."""
