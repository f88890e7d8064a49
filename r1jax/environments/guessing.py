"""Two games of guessing over several turns: a number, with higher and lower, and a word, letter by letter."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

_NUMBER = re.compile(r"-?\d+")
WORDS = """about above apple beach black bread brown chair clean clock cloud dance dream drink earth field flame floor
fruit glass grass green heart horse house knife large light lunch money month mouse music night ocean paper party peace
piano plant plate queen quick quiet river round scale sheep shirt sleep small smile snake sound south space spoon stone
storm sugar table tiger toast tower train water wheel white woman world young""".split()


class NumberGame:
    """A number from `low` to `high`, drawn from the seed: `respond` says higher or lower until it is found.

    Columns: low (1), high (20), guesses (8), target (drawn). Attributes for rewards: won, turns, guesses, read (replies
    with a number).
    """

    def reset(self, seed: int = 0, low: int = 1, high: int = 20, guesses: int = 8, target: int | None = None) -> str:
        """Begins a game; returns its rule."""
        self.low, self.high, self.guesses = low, high, guesses
        self.target = random.Random(seed).randint(low, high) if target is None else target
        self.won, self.turns, self.read = False, 0, 0
        return f"\n\nI think of a number from {low} to {high}. Guess it; I say higher or lower."

    def respond(self, reply: str) -> str | None:
        """Answers a guess: the last number of the reply."""
        self.turns += 1
        found = _NUMBER.findall(reply)
        guess = int(found[-1][:12]) if found else None
        self.read += guess is not None
        if guess == self.target:
            self.won = True
            return None
        if self.turns >= self.guesses:
            return None
        if guess is None:
            return "I see no number. Guess a number."
        return "Higher." if guess < self.target else "Lower."

    def get_reward(self) -> float:
        """1 for a number found at once, less for each further guess down to one half; 0 if it was not found."""
        return 1.0 - 0.5 * (self.turns - 1) / max(self.guesses - 1, 1) if self.won else 0.0


class WordGame:
    """A word of five letters: `guess` tells for each letter whether it stands there, elsewhere, or nowhere.

    Columns: word (drawn), guesses (6). Attributes for rewards: won, turns.
    """

    def reset(self, seed: int = 0, word: str = "", guesses: int = 6) -> str:
        """Begins a game; returns its rule."""
        self.word = (word or random.Random(seed).choice(WORDS)).lower()
        self.left, self.won, self.turns, self.best = guesses, False, 0, 0
        return (
            f"\n\nFind a word of {len(self.word)} letters with the tool guess, in {guesses} guesses. After each, + is "
            "a letter in its place, ? a letter in another place, - a letter that the word lacks."
        )

    def guess(self, word: str) -> str:
        """Guesses a word.

        Args:
            word: A word of five letters.

        Returns:
            A mark for each letter.
        """
        if self.won or not self.left:
            raise ValueError("the game is over")
        word = word.strip().lower()
        if len(word) != len(self.word) or not word.isalpha():
            raise ValueError(f"a guess has {len(self.word)} letters, got {word[:20]!r}")
        self.turns, self.left = self.turns + 1, self.left - 1
        marks = mark_letters(word, self.word)
        self.won, self.best = word == self.word, max(self.best, marks.count("+"))
        return f"{' '.join(word)}\n{' '.join(marks)}" + ("\nYou found it." if self.won else "")

    def get_reward(self) -> float:
        """1 for a word found, else up to 0.5 for letters in their place."""
        return 1.0 if self.won else 0.5 * self.best / len(self.word)


def numbers_reward(environments: Sequence[Any], **columns: object) -> list[float]:
    """The share of the guesses of a number game that were numbers; those that a win saves count, too."""
    saved = [one.guesses - one.turns if one.won else 0 for one in environments]
    return [(one.read + more) / one.guesses for one, more in zip(environments, saved, strict=True)]


def won_reward(environments: Sequence[Any], **columns: object) -> list[float]:
    """1 for each game that was won, else 0."""
    return [float(environment.won) for environment in environments]


def mark_letters(guess: str, word: str) -> str:
    """A mark for each letter; a letter that is guessed more often than it occurs is marked so often only."""
    left = [letter for letter, same in zip(word, guess, strict=True) if letter != same]
    marks = ""
    for letter, right in zip(guess, word, strict=True):
        if letter == right:
            marks += "+"
        elif letter in left:
            left.remove(letter)
            marks += "?"
        else:
            marks += "-"
    return marks
