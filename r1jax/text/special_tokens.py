"""Special tokens that are spelt in a text: control tokens, or the characters they are written with.

A template writes control tokens into the same string as the words of users and tools, who may spell `<|im_end|>` by
chance or on purpose. `escape_messages` puts ESCAPE before each special token that they spell; a tokenizer reads an
escaped token as text, and any other as control. The mark is a Unicode noncharacter, which no text contains; where one
does, only a mark directly before a special token has this meaning.

Words of the system and of the assistant are not escaped: they are the developer's, or what a model sampled, and may
hold control tokens on purpose (tool calls, for example). Added tokens that are not special (`<think>`) stay tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import tokenizers

SpecialTokensInText = Literal["text", "control"]
ESCAPE = "\ufdd2"  # before a special token that is text
_CONTROL = "\ufdd3"  # begins every special token in the vocabulary of `make_literal`
_OWN_ROLES = ("system", "developer", "assistant")


class SpecialTokens:
    """The special tokens of a vocabulary, found in texts."""

    def __init__(self, tokens: Collection[str]):
        self._tokens = frozenset(tokens) - {""}
        self._lengths = sorted({len(token) for token in self._tokens}, reverse=True)
        first = "".join(sorted({re.escape(token[0]) for token in self._tokens}))
        self._first = re.compile(f"[{first}]" if first else r"(?!)")

    def escape_messages(self, messages: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The messages, with ESCAPE before special tokens in what users and tools say."""
        return [self._escape_message(message) for message in messages]

    def escape(self, text: str) -> str:
        """The text with ESCAPE before each special token."""
        parts, last = [], 0
        for place in self._find(text):
            parts += [text[last:place], ESCAPE]
            last = place
        return "".join([*parts, text[last:]])

    def mark_control(self, text: str) -> str:
        """A text for the vocabulary of `make_literal`: escaped tokens without their mark, the others marked."""
        parts, last = [], 0
        for place in self._find(text):
            before = text[last:place]
            is_text = before.endswith(ESCAPE)
            parts += [before[:-1] if is_text else before, "" if is_text else _CONTROL]
            last = place
        return "".join([*parts, text[last:]])

    def _escape_message(self, message: Any) -> Any:
        if not isinstance(message, Mapping) or message.get("role") in _OWN_ROLES:
            return message
        content = message.get("content")
        if isinstance(content, str):
            return {**message, "content": self.escape(content)}
        if isinstance(content, list):
            return {**message, "content": [self._escape_part(part) for part in content]}
        return message

    def _escape_part(self, part: Any) -> Any:
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            return {**part, "text": self.escape(part["text"])}
        return part

    def _find(self, text: str) -> Iterator[int]:
        """Position of each special token, the longest one at each place."""
        place = 0
        while found := self._first.search(text, place):
            start = found.start()
            size = next((n for n in self._lengths if text[start : start + n] in self._tokens), 0)
            if size:
                yield start
            place = start + max(size, 1)


def make_literal(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same vocabulary and ids, where special tokens are spelt with a mark that `mark_control` writes, so that the
    spelling without it is text.
    """
    parts = json.loads(backend.to_str())
    specials = {token["content"] for token in parts["added_tokens"] if token["special"]}
    rename = lambda text: _CONTROL + text if text in specials else text
    for token in parts["added_tokens"]:
        token["content"] = rename(token["content"])
    model = parts["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {rename(text): id_ for text, id_ in model["vocab"].items()}
    else:
        model["vocab"] = [[rename(text), score] for text, score in model["vocab"]]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = rename(model["unk_token"])
    if "merges" in model:
        pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if specials.isdisjoint((*pair, "".join(pair)))]
    return tokenizers.Tokenizer.from_str(json.dumps(parts))
