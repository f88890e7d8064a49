"""Encoding of prompts (text or messages) to token ids, shared by all stages."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.text.chat_template import render
from r1jax.text.tokenizer import Tokenizer


def encode_prompt(tokenizer: Tokenizer, prompt: str | Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Token ids of a prompt: text with the model's BOS (if it has one), or messages through the chat template."""
    if isinstance(prompt, str):
        return tuple(tokenizer.encode(prompt, add_special=True))
    return tuple(tokenizer.encode(render(tokenizer, prompt)))


class PromptEncoder:
    """`encode_prompt` of one tokenizer, cached per prompt."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}

    def __call__(self, prompt: str | Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        key = json.dumps(prompt)
        if key not in self._known:
            self._known[key] = encode_prompt(self._tokenizer, prompt)
        return self._known[key]


def find_prefix(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Longest common prefix of all prompts, shorter than each of them: the template's text, which is computed only
    once.
    """
    common = os.path.commonprefix([min(prompts), max(prompts)])
    return tuple(common[: min(len(common), min(map(len, prompts)) - 1)])
