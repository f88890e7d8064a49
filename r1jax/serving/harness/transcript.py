"""Calls of one program as token sequences: each reply stands behind what it answers, and no token is trained twice.

A call whose prompt extends a strand, id by id, grows it: what is new in the prompt was given, the reply was sampled.
Any other prompt begins a further strand, whose prompt carries no loss whatever it repeats. Texts are compared before
they are encoded: a prompt that begins with all the text of a strand, as a client or a template spells it, gets the
strand's ids, so that what was sampled is not encoded anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from r1jax.core.structs import Completion, EndReason
from r1jax.text.tokenizer import Tokenizer

CONTEXT = 8  # ids before a reply with which it is decoded, since the text of an id may depend on those


Played = tuple[tuple[int, ...], Completion]  # a prompt and what is behind it


@dataclasses.dataclass(frozen=True)
class Limits:
    """Tokens that a strand may have: longest: of its prompt, as rows hold it; behind: behind that; turn: of a reply."""

    longest: int
    behind: int
    turn: int


@dataclasses.dataclass
class Strand:
    """A sequence that calls made. prompt: of its first call. tokens, logprobs, sampled: behind it.

    texts: ways in which a prompt may spell all of it; none where a prompt came as ids. shown: the first prompt, as it
    was put. messages: what follows it. number: of its last call.
    """

    prompt: tuple[int, ...]
    shown: Any
    texts: tuple[str, ...] = ()
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    sampled: list[bool] = dataclasses.field(default_factory=list)
    messages: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    number: int = 0

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids."""
        return (*self.prompt, *self.tokens)

    def take(self, tokens: Sequence[int], logprobs: Sequence[float] | None) -> None:
        """Takes ids behind the others. logprobs: None for ids that were given."""
        self.tokens += tokens
        self.logprobs += [0.0] * len(tokens) if logprobs is None else logprobs
        self.sampled += [logprobs is not None] * len(tokens)


class Transcript:
    """The strands of one program. calls: replies so far. is_cut: whether a limit of the run ended one of them."""

    def __init__(self, tokenizer: Tokenizer, limits: Limits):
        self.tokenizer, self.limits = tokenizer, limits
        self.strands: list[Strand] = []
        self.calls, self.is_cut = 0, False
        self._texts: dict[tuple[int, ...], str] = {}

    def encode(self, text: str, encode: Callable[[str], Sequence[int]]) -> tuple[int, ...]:
        """Ids of a prompt: those of the longest strand that it begins with, and of the rest; else `encode(text)`."""
        begun = [(known, strand) for strand in self.strands for known in strand.texts if text.startswith(known)]
        if begun:
            known, strand = max(begun, key=lambda pair: len(pair[0]))
            ids = (*strand.ids, *self.tokenizer.encode_more(text[len(known) :]))
        else:
            ids = tuple(encode(text))
        self._texts[ids] = text
        return ids

    def find(self, prompt: tuple[int, ...]) -> Strand | None:
        """The longest strand that a prompt extends."""
        begun = [strand for strand in self.strands if prompt[: len(strand.ids)] == strand.ids]
        return max(begun, key=lambda strand: len(strand.ids), default=None)

    def find_room(self, prompt: tuple[int, ...]) -> int:
        """Tokens that a reply to a prompt may have; below 1 if the prompt is too long."""
        strand = self.find(prompt)
        first = prompt if strand is None else strand.prompt
        behind = len(prompt) - min(len(first), self.limits.longest)
        return min(self.limits.turn, self.limits.behind - behind)

    def add(
        self,
        prompt: tuple[int, ...],
        tokens: Sequence[int],
        logprobs: Sequence[float],
        *,
        text: str,
        asked: Any,
        stop_ids: Sequence[int],
        cut_at: int = 0,
    ) -> None:
        """Takes a reply. text: as the client got it. asked: messages, or the text or ids, that it answers. stop_ids:
        those that could end it. cut_at: most tokens that it could have, where it ended for having as many.
        """
        self.is_cut |= cut_at >= self.find_room(prompt) > 0
        self.calls += 1
        strand, spelt = self.find(prompt), self._texts.get(prompt)
        if strand is None:
            strand = Strand(prompt, asked)
            self.strands.append(strand)
        else:
            given = prompt[len(strand.ids) :]
            strand.messages += self._read_given(strand, asked, given)
            strand.take(given, None)
        ways = [self._spell(prompt, tokens)]
        if tokens[-1] in stop_ids:  # a template closes a turn by its own end, whichever was sampled
            ways += [text + self.tokenizer.decode([end], skip_special=False) for end in stop_ids]
        elif cut_at:  # not by a text, which the client does not see
            ways.append(text)
        strand.texts = () if spelt is None else tuple(spelt + way for way in ways if way is not None)
        strand.take(tokens, logprobs)
        strand.messages.append({"role": "assistant", "content": text})
        strand.number = self.calls

    def finish(self, reason: EndReason | None, **result: Any) -> tuple[Completion, list[Played]]:
        """The completion of the program, and its strands as (prompt, completion). reason: None for that of its replies.

        The completion has the ids of all strands, one behind the other; its messages are those of the last reply's.
        """
        end = reason or ("length" if self.is_cut else "stop")
        whole, played = Strand((), None), list[Played]()
        for number, strand in enumerate(self.strands):
            if number:
                whole.take(strand.prompt, None)
            for name in ("tokens", "logprobs", "sampled"):
                getattr(whole, name).extend(getattr(strand, name))
            head = strand.prompt[self.limits.longest :]
            behind = Strand((), None)
            behind.take(head, None)
            tokens, logprobs = (*behind.tokens, *strand.tokens), (*behind.logprobs, *strand.logprobs)
            sampled = (*behind.sampled, *strand.sampled)
            prompt = strand.prompt[: self.limits.longest]
            played.append((prompt, Completion(tokens, logprobs, end, sampled=sampled)))
        last = max(self.strands, key=lambda strand: strand.number, default=whole)
        completion = Completion(
            tuple(whole.tokens),
            tuple(whole.logprobs),
            end,
            sampled=tuple(whole.sampled),
            messages=tuple(last.messages),
            prompt=last.shown,
            **result,
        )
        return completion, played

    def _read_given(self, strand: Strand, asked: Any, given: Sequence[int]) -> list[dict[str, Any]]:
        """The messages that a prompt adds to a strand."""
        known = isinstance(asked, list) and isinstance(strand.shown, list)
        if known and asked and isinstance(asked[0], dict) and isinstance(strand.shown[0], dict):
            return [dict(message) for message in asked[len(strand.shown) + len(strand.messages) :]]
        return [{"role": "user", "content": self.tokenizer.decode(given)}] if given else []

    def _spell(self, prompt: tuple[int, ...], tokens: Sequence[int]) -> str | None:
        """Text of a reply with its special tokens, as a prompt would spell it."""
        before = prompt[-CONTEXT:]
        known = self.tokenizer.decode(before, skip_special=False)
        whole = self.tokenizer.decode((*before, *tokens), skip_special=False)
        return whole[len(known) :] if whole.startswith(known) else None
