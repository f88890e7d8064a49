"""Definitions of tools, equal to transformers' `get_json_schema`, and functions that are none."""

from typing import Literal

import pytest

from r1jax.core.errors import UserError
from r1jax.text.tools.schemas import describe_function


def calculate(
    expression: str,
    digits: int = 2,
    kind: Literal["a", "b"] = "a",
    names: list[str] | None = None,
    both: int | str = 1,
    table: dict[str, int] = {},  # noqa: B006
) -> str:
    """
    Compute the value of an expression.

    Longer text.

    Args:
        expression: The expression,
            over two lines.
        digits (int): Digits of the result.
        kind: A kind
        names: names
        both: both
        table: (choices: ["x", "y"])

    Returns:
        The value
    """
    return ""


def test_the_definition_is_that_of_transformers() -> None:  # get_json_schema of transformers 5.24
    properties = {
        "expression": {"type": "string", "description": "The expression, over two lines."},
        "digits": {"type": "integer", "description": "Digits of the result."},
        "kind": {"type": "string", "enum": ["a", "b"], "description": "A kind"},
        "names": {"type": "array", "items": {"type": "string"}, "nullable": True, "description": "names"},
        "both": {"type": ["integer", "string"], "description": "both"},
        "table": {
            "type": "object",
            "additionalProperties": {"type": "integer"},
            "enum": ["x", "y"],
            "description": "",
        },
    }
    assert describe_function(calculate)["function"] == {
        "name": "calculate",
        "description": "Compute the value of an expression.\n\nLonger text.",
        "parameters": {"type": "object", "properties": properties, "required": ["expression"]},
        "return": {"type": "string", "description": "The value"},
    }


def test_a_method_has_no_self() -> None:
    class Counter:
        def add(self, amount: int) -> None:
            """Adds."""

    found = describe_function(Counter.add, is_method=True)["function"]
    assert found["parameters"] == {
        "type": "object",
        "properties": {"amount": {"type": "integer"}},
        "required": ["amount"],
    }


def untyped(x) -> str:
    """Does it."""
    return x


def silent(x: int) -> int:
    return x


def starred(*x: int) -> int:
    """Does it."""
    return 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (untyped, "the tool untyped needs a type for its argument x"),
        (silent, "the tool silent needs a docstring that says what it does"),
        (starred, "the tool starred must take named arguments only, got \\*x: int"),
    ],
)
def test_a_function_that_is_no_tool_is_refused(function, message: str) -> None:
    with pytest.raises(UserError, match=message):
        describe_function(function)
