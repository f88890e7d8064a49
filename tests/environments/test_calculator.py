"""Arithmetic, exactly; and texts that are none."""

import pytest

from r1jax.environments.calculator import calculate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("23 * 19", "437"),
        ("2 + 3 * 4 =", "14"),
        ("1,000 - 1", "999"),
        ("0.1 + 0.2", "0.3"),
        ("1 / 3", "0.3333333333"),
        ("-(2 ** 10) // 3", "-342"),
        ("7 % 4", "3"),
        ("12 × 12", "144"),
        ("2^8", "256"),
    ],
)
def test_an_expression_has_its_value(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "text",
    ["", "two", "__import__('os')", "1 +", "9**9**9", "1/0", "(" * 500, "10**61", "x = 3", "'a' * 3", "True + 1"],
)
def test_anything_else_raises_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        calculate(text)
