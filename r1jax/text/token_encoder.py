"""Text to ids by one backend of the `tokenizers` package, at the start of a text or behind other tokens."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import tokenizers


class TokenEncoder:
    """Encodes by a backend, with or without the space that sentencepiece puts before a text."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self._backend = backend

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Ids of a text, with what the backend's post-processor adds (`add_special`)."""
        return self._backend.encode(text, add_special_tokens=add_special).ids

    def encode_more(self, text: str) -> list[int]:
        """Ids of a text that follows other tokens: without the space before it."""
        if self._follower is None:
            return self.encode(text)
        head = next(iter(self._added.split(text, 1)))  # text after an added token gets the space again
        return [*self._follower.encode(head, add_special_tokens=False).ids, *self.encode(text[len(head) :])]

    @functools.cached_property
    def _added(self) -> re.Pattern[str]:
        contents = sorted((token.content for token in self._backend.get_added_tokens_decoder().values()), key=len)
        return re.compile("|".join(map(re.escape, reversed(contents))) or r"\Z")

    @functools.cached_property
    def _follower(self) -> tokenizers.Tokenizer | None:
        """The backend without the space before a text; None if it adds none."""
        if self._backend.encode("a", add_special_tokens=False).tokens == ["a"]:
            return None
        backend = json.loads(self._backend.to_str())
        for part in _list_parts(backend["normalizer"]) + _list_parts(backend["pre_tokenizer"]):
            for switch, value in {"prepend": "", "prepend_scheme": "never", "add_prefix_space": False}.items():
                if switch in part:
                    part[switch] = value
        return tokenizers.Tokenizer.from_str(json.dumps(backend))


def _list_parts(part: Any) -> list[dict[str, Any]]:
    """All parts of a normalizer or pre-tokenizer of tokenizer.json, sequences flattened."""
    if part is None:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers") or []
    return [part, *(found for child in inner for found in _list_parts(child))]
