"""Texts that end a reply, found in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from r1jax.text.increments import count_begun


class StopTexts:
    """Cuts a text before the first of `stops`; what may be the beginning of one is kept back until it is certain."""

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stop for stop in stops if stop)
        self._rest = ""
        self.is_found = False

    def push(self, text: str) -> str:
        """The text that is certain, with what was kept back; "" once a stop was found."""
        if self.is_found:
            return ""
        self._rest += text
        places = [place for stop in self._stops if (place := self._rest.find(stop)) >= 0]
        if places:
            self.is_found = True
            found, self._rest = self._rest[: min(places)], ""
            return found
        kept = max((count_begun(self._rest, stop) for stop in self._stops), default=0)
        found, self._rest = self._rest[: len(self._rest) - kept], self._rest[len(self._rest) - kept :]
        return found

    def end(self) -> str:
        """The rest that was kept back."""
        found, self._rest = self._rest, ""
        return found
