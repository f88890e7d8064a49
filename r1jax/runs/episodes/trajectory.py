"""One trajectory while it grows: its tokens, which of them were sampled, its messages, and what happened in it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from r1jax.core.structs import Completion, EndReason, Sampling
from r1jax.environments.contract import Contract
from r1jax.text.increments import TextIncrements
from r1jax.text.tools.dialogue import Dialogue, Prompt, Turn


@dataclasses.dataclass(frozen=True)
class Start:
    """A trajectory to sample.

    prompt: a text or messages. row: columns for `reset`. kind: name of its environment. sampling: its limit is that of
    a turn, and of the whole where config.episode sets no other. seed: of the sampled tokens. environment_seed: for the
    environment.
    """

    prompt: Prompt
    row: Mapping[str, Any]
    kind: str
    sampling: Sampling
    seed: int
    environment_seed: int


@dataclasses.dataclass(frozen=True)
class Episode:
    """A trajectory at its end: tokens of its prompt with what `reset` added, its completion, and counts.

    calls, failures: of tools by name. events: faults and cut replies by kind. seconds: of its environment's calls.
    """

    prompt_tokens: tuple[int, ...]
    completion: Completion
    turns: int
    calls: Mapping[str, int]
    failures: Mapping[str, int]
    events: Mapping[str, int]
    seconds: float


class Trajectory:
    """The host's record of a trajectory. room: tokens behind the prompt."""

    def __init__(self, start: Start, contract: Contract, dialogue: Dialogue, room: int):
        self.start, self.contract, self.dialogue, self.room = start, contract, dialogue, room
        self.prompt = start.prompt
        self.prompt_tokens: tuple[int, ...] = ()
        self.tokens: list[int] = []
        self.sampled: list[bool] = []
        self.logprobs: list[float] = []
        self.messages: list[dict[str, Any]] = []
        self.calls, self.failures, self.events = Counter[str](), Counter[str](), Counter[str]()
        self.turns, self.seconds = 0, 0.0
        self.turn: Turn | None = None
        self.results: list[str] = []
        self.environment: Any = None
        self.payment: float | None = None
        self.reason: EndReason | None = None
        self._begin = 0
        self._increments, self._text = TextIncrements(dialogue.tokenizer), ""

    @property
    def is_raw(self) -> bool:
        """Whether the prompt is a text without roles."""
        return isinstance(self.start.prompt, str)

    @property
    def turn_limit(self) -> int:
        """Tokens that may be sampled in the turn that begins now."""
        return min(self.start.sampling.max_new_tokens, self.room - len(self.tokens))

    @property
    def turn_tokens(self) -> list[int]:
        """Sampled tokens of the present or last turn."""
        return self.tokens[self._begin :]

    def hear(self, tokens: tuple[int, ...], logprobs: tuple[float, ...], stops: tuple[str, ...]) -> int | None:
        """Takes sampled tokens up to the one in which a text of `stops` ends; returns how many, None if all go on."""
        found = None
        for number, token in enumerate(tokens if stops else (), 1):
            self._text += self._increments.push(token)
            if any(stop in self._text for stop in stops):
                found = number
                break
            self._text = self._text[-max(map(len, stops)) :]
        count = len(tokens) if found is None else found
        self.tokens += tokens[:count]
        self.logprobs += logprobs[:count]
        self.sampled += [True] * count
        return found

    def give(self, tokens: tuple[int, ...], messages: list[dict[str, Any]]) -> None:
        """Takes tokens that were given, and their messages; the next turn begins behind them."""
        self.tokens += tokens
        self.logprobs += [0.0] * len(tokens)
        self.sampled += [False] * len(tokens)
        self.messages += messages
        self._begin = len(self.tokens)
        self._increments, self._text = TextIncrements(self.dialogue.tokenizer), ""

    def finish(self) -> Episode:
        """The trajectory at its end."""
        completion = Completion(
            tuple(self.tokens),
            tuple(self.logprobs),
            self.reason or "fault",
            sampled=tuple(self.sampled),
            messages=tuple(self.messages),
            prompt=None if self.prompt is self.start.prompt else self.prompt,
            environment=self.environment,
            payment=self.payment,
        )
        told = {name: dict(getattr(self, name)) for name in ("calls", "failures", "events")}
        return Episode(self.prompt_tokens, completion, self.turns, **told, seconds=self.seconds)
