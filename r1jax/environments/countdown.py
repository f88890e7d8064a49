"""Countdown with checks: reach a target by arithmetic with given numbers, each used at most once.

A tool checks an attempt, so that the model may try again; `submit` is the last one. Columns: `numbers` and `target`, or
what the seed draws (a target that some expression reaches).
"""

from __future__ import annotations

import ast
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from r1jax.environments.calculator import evaluate, show


class Countdown:
    """One puzzle. Attributes for rewards: solved, submitted, checks."""

    def reset(
        self, seed: int = 0, numbers: Sequence[int] | None = None, target: int | None = None, count: int = 4
    ) -> str:
        """Begins a puzzle; returns it."""
        chance = random.Random(seed)
        self.numbers = [*numbers] if numbers else [chance.randint(1, 20) for _ in range(count)]
        self.target = draw_target(self.numbers, chance) if target is None else target
        self.solved = self.submitted = False
        self.checks = 0
        return (
            f"\n\nReach {self.target} with the numbers {', '.join(map(str, self.numbers))}, each used at most once, by "
            "+ - * / and parentheses. Try with check, then submit."
        )

    def check(self, expression: str) -> str:
        """Computes an expression and says whether it solves the puzzle.

        Args:
            expression: Arithmetic with the given numbers.
        """
        self.checks += 1
        value = self._compute(expression)
        return f"{show(value)}: " + ("solved" if value == self.target else f"not {self.target}")

    def submit(self, expression: str) -> str:
        """Submits the solution; there is one attempt.

        Args:
            expression: Arithmetic with the given numbers.
        """
        if self.submitted:
            raise ValueError("the puzzle is over")
        self.submitted = True
        self.solved = self._compute(expression) == self.target
        return "right" if self.solved else "wrong"

    def get_reward(self) -> float:
        """1 for a right solution that was submitted, else 0."""
        return float(self.solved)

    def _compute(self, expression: str) -> Fraction:
        value = evaluate(expression)
        tree = ast.parse(expression.strip().rstrip("=").replace("×", "*").replace("÷", "/"), mode="eval")
        numbers = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        used = Counter(number for number in numbers if isinstance(number, int | float))
        if missing := used - Counter(self.numbers):
            raise ValueError(f"{next(iter(missing))} is not among the numbers left")
        return value


def draw_target(numbers: Sequence[int], chance: random.Random) -> int:
    """A target from 1 to 999 that some expression reaches."""
    while True:
        left = [*numbers]
        chance.shuffle(left)
        value = left.pop()
        for number in left[: chance.randint(1, len(left))]:
            kind = chance.choice("+-*")
            value = value + number if kind == "+" else value - number if kind == "-" else value * number
        if 0 < value < 1000 and value not in numbers:
            return value
