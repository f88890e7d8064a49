"""Text of ids that arrive one by one, in pieces that can be shown at once, with reasoning and answer told apart."""

from __future__ import annotations

from collections.abc import Iterator

from r1jax.text.reasoning import THINK_CLOSE, THINK_OPEN
from r1jax.text.tokenizer import Tokenizer


class TextIncrements:
    """Decodes ids one by one: `push` returns the text that an id adds, "" while a character is incomplete."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._before, self._shown = 0, 0  # ids from `before` on are decoded again; those before `shown` were returned

    def push(self, token: int) -> str:
        """The text that is complete with this id and was not returned yet."""
        self._ids.append(token)
        return self._take(whole=False)

    def end(self) -> str:
        """The rest, an incomplete character as U+FFFD."""
        return self._take(whole=True)

    def _take(self, *, whole: bool) -> str:
        # The text of an id may depend on the one before it (a space at the beginning), so the last shown ids stay in.
        known = self._tokenizer.decode(self._ids[self._before : self._shown])
        text = self._tokenizer.decode(self._ids[self._before :])
        if text.endswith("\ufffd") and not whole:
            return ""
        if len(text) > len(known):
            self._before, self._shown = self._shown, len(self._ids)
        return text[len(known) :]


def count_begun(text: str, mark: str) -> int:
    """Characters at the end of `text` with which `mark` begins, but not all of it: more text may complete them."""
    return next(count for count in range(len(mark) - 1, -1, -1) if text.endswith(mark[:count]))


class ThoughtSplitter:
    """Splits a text that arrives in pieces at R1's think tags: (piece, whether it is reasoning), tags left out.

    is_open: whether the prompt has opened the reasoning already.
    """

    def __init__(self, *, is_open: bool = False):
        self.is_open, self._rest = is_open, ""

    def push(self, text: str) -> Iterator[tuple[str, bool]]:
        """Pieces that are certain; what may become a tag is kept back."""
        self._rest += text
        while self._rest:
            tag = THINK_CLOSE if self.is_open else THINK_OPEN
            before, found, after = self._rest.partition(tag)
            if found:
                self._rest = after
            else:
                kept = count_begun(before, tag)
                before, self._rest = before[: len(before) - kept], before[len(before) - kept :]
            if before:
                yield before, self.is_open
            if not found:
                return
            self.is_open = not self.is_open

    def end(self) -> Iterator[tuple[str, bool]]:
        """The rest that was kept back."""
        if self._rest:
            yield self._rest, self.is_open
        self._rest = ""
