"""A calculator: sums, products and powers of numbers, computed exactly and without executing text."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

_TWO: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_MOST_DIGITS, _MOST_CHARACTERS, _MOST_POWER = 60, 400, 64


def calculate(expression: str) -> str:
    """Computes an arithmetic expression.

    Args:
        expression: Numbers with + - * / // % ** and parentheses.

    Returns:
        The value: a whole number, or a decimal one.
    """
    return show(evaluate(expression))


def evaluate(expression: str) -> Fraction:
    """The exact value of an expression. Raises ValueError for anything but arithmetic, and for a number too large."""
    text = expression.strip().rstrip("=").replace("×", "*").replace("÷", "/").replace("^", "**").replace(",", "")
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"the expression has more than {_MOST_CHARACTERS} characters")
    try:
        return _compute(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{expression.strip()[:60]!r} is no arithmetic expression") from None
    except ZeroDivisionError:
        raise ValueError("division by zero") from None


def show(value: Fraction) -> str:
    """A number in digits: exact if it is whole, else ten significant ones."""
    if value.denominator == 1:
        return str(value.numerator)
    number = Decimal(value.numerator) / Decimal(value.denominator)
    return format(Decimal(f"{number:.10g}").normalize(), "f")


def _compute(node: ast.AST) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _check(Fraction(str(node.value)))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _compute(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        base, power = _compute(node.left), _compute(node.right)
        if power.denominator != 1 or abs(power) > _MOST_POWER:
            raise ValueError(f"a power must be a whole number up to {_MOST_POWER}")
        return _check(base ** int(power))
    if isinstance(node, ast.BinOp) and type(node.op) in _TWO:
        return _check(Fraction(_TWO[type(node.op)](_compute(node.left), _compute(node.right))))
    raise ValueError("only numbers, + - * / // % ** and parentheses are computed")


def _check(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator) >= 10**_MOST_DIGITS:
        raise ValueError(f"a number has more than {_MOST_DIGITS} digits")
    return value
