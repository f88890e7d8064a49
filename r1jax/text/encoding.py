"""Encoding of prompts (text or messages) to token ids, shared by all stages."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from r1jax.text.chat_template import render
from r1jax.text.tokenizer import Tokenizer


def encode_prompt(tokenizer: Tokenizer, prompt: str | Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Token ids of a prompt: text with the model's BOS (if it has one), or messages through the chat template."""
    if isinstance(prompt, str):
        return tuple(tokenizer.encode(prompt, add_special=True))
    return tuple(tokenizer.encode(render(tokenizer, prompt)))


KEPT_PROMPTS = 16_384  # ids of so many prompts are kept: of small data sets all, of large ones the latest


class PromptEncoder:
    """`encode_prompt` of one tokenizer; the latest prompts are kept encoded."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}

    def __call__(self, prompt: str | Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        key = json.dumps(prompt)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= KEPT_PROMPTS:
                del self._known[next(iter(self._known))]
            found = self._known[key] = encode_prompt(self._tokenizer, prompt)
        return found


def find_prefix(prompts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Longest common prefix of all prompts (at least one), shorter than each of them: the template's text, which is
    computed only once.
    """
    search = PrefixSearch()
    for prompt in prompts:
        search.add(prompt)
    return search.find()


class PrefixSearch:
    """`find_prefix` of prompts that come one by one and are not kept."""

    def __init__(self) -> None:
        self._ends: list[tuple[int, ...]] = []  # the first and the last in alphabetical order
        self._shortest = 0

    def add(self, prompt: tuple[int, ...]) -> None:
        """Takes another prompt into account."""
        self._shortest = min(self._shortest, len(prompt)) if self._ends else len(prompt)
        self._ends = [min([prompt, *self._ends[:1]]), max([prompt, *self._ends[1:]])]

    def find(self) -> tuple[int, ...]:
        """The prefix of the prompts so far."""
        common = os.path.commonprefix(self._ends)
        return tuple(common[: min(len(common), self._shortest - 1)])
