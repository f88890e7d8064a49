"""Decisions of a batch of trajectories: what an engine does next with which slot, by what was sampled and answered.

Only the first process of a run has a conductor, as only there environments live; the others follow its orders
(driver.py). A trajectory goes through these states: its environment is reset, it waits for a slot, a turn is sampled,
the environment answers while the slot is parked, the next turn is sampled, …, and at the end its reward and state are
asked for. Whatever an environment does wrong ends its trajectory alone, with the finish reason `fault`.
"""

from __future__ import annotations

import logging
import math
import numbers
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from r1jax.core.structs import EndReason
from r1jax.environments.episode_config import EpisodeConfig
from r1jax.environments.workers import Reply, Workers
from r1jax.runs.episodes.trajectory import Trajectory
from r1jax.text.tools.dialogue import Answer, clean

log = logging.getLogger(__name__)

CUT = " […]"


class Order(NamedTuple):
    """An order for the slot of a trajectory: open or extend it by tokens up to a limit, cut it, or close it."""

    kind: str
    number: int
    tokens: tuple[int, ...] = ()
    limit: int = 0


class Heard(NamedTuple):
    """Tokens that were sampled for a trajectory."""

    number: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    reason: str


class Conductor:
    """Trajectories of a batch, their environments, and the slots that they may take.

    longest: tokens of a prompt; what `reset` adds beyond counts as tokens of the trajectory. left: trajectories that
    are not at their end.
    """

    def __init__(
        self, trajectories: Sequence[Trajectory], workers: Workers, config: EpisodeConfig, slots: int, longest: int
    ):
        self.trajectories, self.workers, self.config, self.longest = trajectories, workers, config, longest
        self.free, self.parked_seconds = slots, 0.0
        self._waiting = deque(range(len(trajectories)))  # not reset yet
        self._ready: deque[int] = deque()  # reset, without a slot
        self._asked: set[int] = set()
        self._in_slots: set[int] = set()
        self.left = len(trajectories)
        self._most = 2 * slots  # environments that are alive at once, those at their end left out
        self.base = workers.next_key(len(trajectories))

    @property
    def is_over(self) -> bool:
        """Whether all trajectories are at their end."""
        return not self.left

    @property
    def parked(self) -> int:
        """Number of slots that wait for their environment."""
        return len(self._asked & self._in_slots)

    @property
    def waits(self) -> bool:
        """Whether some environment has been asked and has not answered."""
        return bool(self._asked)

    def plan(self, seconds: float) -> list[Order]:
        """The next orders, waiting up to `seconds` for an environment where nothing else can go on."""
        orders: list[Order] = []
        while self._waiting and len(self._ready) + len(self._asked) + len(self._in_slots - self._asked) < self._most:
            self._reset(self._waiting.popleft())
        for reply in self.workers.poll(0.0 if self._ready and self.free else seconds):
            number = reply.key - self.base
            if 0 <= number < len(self.trajectories) and number in self._asked:
                self._asked.discard(number)
                self.trajectories[number].seconds += reply.seconds
                orders += self._take(number, reply)
        while self._ready and self.free:
            number = self._ready.popleft()
            one = self.trajectories[number]
            self.free -= 1
            self._in_slots.add(number)
            orders.append(Order("open", number, one.prompt_tokens, one.turn_limit))
        return orders

    def hear(self, heard: Sequence[Heard]) -> list[Order]:
        """Takes what was sampled."""
        orders: list[Order] = []
        for number, tokens, logprobs, reason in heard:
            one = self.trajectories[number]
            stops = (*one.dialogue.stop_texts, *self.config.stop_texts)
            count = one.hear(tokens, logprobs, stops)
            if count is not None:
                orders.append(Order("cut", number, limit=count))
                reason = "stop"
            if reason:
                orders += self._end_turn(number, reason)
        return orders

    # --- Steps of a trajectory ---

    def _reset(self, number: int) -> None:
        one = self.trajectories[number]
        self.workers.open(self.base + number, one.contract, one.start.environment_seed)
        row = {"seed": one.start.environment_seed, "prompt": one.start.prompt, **one.start.row, **self.config.arguments}
        self._ask(number, "reset", row)

    def _ask(self, number: int, operation: str, *arguments: object) -> None:
        self._asked.add(number)
        self.workers.ask(self.base + number, operation, *arguments)

    def _take(self, number: int, reply: Reply) -> list[Order]:
        """Orders that follow an answer of an environment."""
        one = self.trajectories[number]
        if reply.operation == "get_state":
            one.environment = reply.value
            if self.config.isolation != "thread" or reply.fault:
                self.workers.close(self.base + number)
            self.left -= 1
            return []
        if reply.fault or (reply.raised is not None and reply.operation != "call"):
            return self._fail(number, reply.fault or f"raised in {reply.operation}", reply.raised or "")
        if reply.operation == "reset":
            return self._begin(number, reply.value)
        if reply.operation == "call":
            return self._take_result(number, reply)
        if reply.operation == "respond":
            return self._take_words(number, reply.value)
        return self._take_payment(number, reply.value)

    def _begin(self, number: int, opening: object) -> list[Order]:
        one = self.trajectories[number]
        if not (opening is None or isinstance(opening, str)):
            return self._fail(number, "wrong type", f"reset must return a text or None, got {type(opening).__name__}")
        opening = None if opening is None else self._shorten(one, opening)
        one.prompt = one.dialogue.extend_prompt(one.start.prompt, opening)
        one.prompt_tokens = one.dialogue.open(one.start.prompt, opening)
        one.room -= max(0, len(one.prompt_tokens) - self.longest)
        if one.room < 1:
            return self._fail(number, "long prompt", f"reset makes a prompt of {len(one.prompt_tokens)} tokens")
        self._ready.append(number)
        return []

    def _end_turn(self, number: int, reason: str) -> list[Order]:
        one = self.trajectories[number]
        one.turns += 1
        turn = one.dialogue.read(one.turn_tokens)
        one.turn, one.results = turn, []
        one.messages.append(turn.message)
        if reason == "length":
            return self._end(number, "length")
        if turn.calls or turn.broken:
            one.failures.update(["malformed"] * len(turn.broken))
            return self._call_next(number)
        if one.contract.responds:
            self._ask(number, "respond", turn.message["content"])
            return []
        return self._end(number, "stop")

    def _call_next(self, number: int) -> list[Order]:
        """Asks for the next call of a turn; after the last one the results go to the model."""
        one = self.trajectories[number]
        assert one.turn is not None
        while len(one.results) < len(one.turn.calls):
            call = one.turn.calls[len(one.results)]
            if call.name in one.contract.tool_names:
                one.calls[call.name] += 1
                is_first = not sum(one.turn.calls[i].name in one.contract.tool_names for i in range(len(one.results)))
                words = [one.turn.message["content"]] if is_first else []
                self._ask(number, "call", call.name, call.arguments, *words)
                return []
            one.failures["unknown"] += 1
            names = ", ".join(one.contract.tool_names)
            one.results.append(
                f"error: there is no tool {call.name!r}; there are {names}"[: self.config.reply_characters]
            )
        broken = [f"error: this call could not be read: {text[:200]}" for text in one.turn.broken]
        answer = one.dialogue.answer_calls(one.turn, [*one.results, *broken], one.tokens[-1])
        return self._go_on(number, answer)

    def _take_result(self, number: int, reply: Reply) -> list[Order]:
        one = self.trajectories[number]
        assert one.turn is not None
        if reply.raised is not None:
            one.failures[one.turn.calls[len(one.results)].name] += 1
        text = f"error: {reply.raised}" if reply.raised is not None else str(reply.value)
        one.results.append(self._shorten(one, text))
        return self._call_next(number)

    def _take_words(self, number: int, words: object) -> list[Order]:
        one = self.trajectories[number]
        if words is None:
            return self._end(number, "stop")
        if not isinstance(words, str):
            return self._fail(number, "wrong type", f"respond must return a text or None, got {type(words).__name__}")
        return self._go_on(
            number, one.dialogue.answer_words(self._shorten(one, words), one.tokens[-1], is_raw=one.is_raw)
        )

    def _go_on(self, number: int, answer: Answer) -> list[Order]:
        """Samples the next turn behind an answer, if there is room for it and one token."""
        one = self.trajectories[number]
        is_last = one.turns >= self.config.max_turns
        if is_last or len(one.tokens) + len(answer.tokens) >= one.room:
            one.messages += answer.messages  # they were said, though no token of them is in the trajectory
            return self._end(number, "turns" if is_last else "length")
        one.give(answer.tokens, answer.messages)
        return [Order("extend", number, answer.tokens, one.turn_limit)]

    def _end(self, number: int, reason: EndReason) -> list[Order]:
        """Frees the slot, and asks for the reward and the state."""
        one = self.trajectories[number]
        one.reason = reason
        self._ask(number, "get_reward" if one.contract.pays else "get_state")
        return self._leave(number)

    def _take_payment(self, number: int, value: object) -> list[Order]:
        one = self.trajectories[number]
        if not (value is None or (isinstance(value, numbers.Real) and math.isfinite(value))):
            return self._fail(number, "wrong type", f"get_reward must return a number or None, got {str(value)[:60]!r}")
        one.payment = None if value is None else float(value)
        self._ask(number, "get_state")
        return []

    def _fail(self, number: int, kind: str, words: str) -> list[Order]:
        """Ends a trajectory by a fault of its environment."""
        one = self.trajectories[number]
        one.reason = "fault"
        one.events[kind] += 1
        place = one.contract.place or "tools"
        log.warning("the environment %s failed (%s): %s", place, kind, " ".join(words.split())[:300])
        self.workers.close(self.base + number)
        self.left -= 1
        return self._leave(number)

    def _leave(self, number: int) -> list[Order]:
        if number not in self._in_slots:
            return []
        self._in_slots.discard(number)
        self.free += 1
        return [Order("close", number)]

    def _shorten(self, one: Trajectory, text: str) -> str:
        text = clean(text[: self.config.reply_characters + 1])
        if len(text) <= self.config.reply_characters:
            return text
        one.events["cut reply"] += 1
        return text[: self.config.reply_characters] + CUT
