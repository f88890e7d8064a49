"""Classes as environments: their tools, what is refused, and plain functions beside them."""

from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.environments.contract import read_contract, read_contracts
from r1jax.environments.registry import ENVIRONMENTS, TOOLS

PLACE = "tests.environments.toys"


class Silent:
    """A public method without a docstring."""

    def act(self, x: int) -> int:
        return x


class Nothing:
    def reset(self, **row: Any) -> None:
        return None


class Static:
    limit = 3

    @property
    def state(self) -> int:
        return 1

    @staticmethod
    def look(text: str) -> str:
        """Looks."""
        return text

    def _hidden(self) -> None: ...


def make() -> Static:
    return Static()


def test_public_methods_are_tools_and_the_contracts_own_are_none() -> None:
    found = read_contract(f"{PLACE}:Counter")
    assert found.tool_names == ["increment", "wait", "explode"]
    assert (found.responds, found.pays) == (False, True)
    talker = read_contract(f"{PLACE}:Talker")
    assert (talker.tool_names, talker.responds) == ([], True)
    for place in (f"{__name__}:Static", f"{__name__}:make"):
        assert read_contract(place).tool_names == ["look"]


def test_plain_functions_are_tools_with_or_without_an_environment() -> None:
    assert read_contract("", ["calculate"]).tool_names == ["calculate"]
    assert read_contract(f"{PLACE}:Counter", ["calculate"]).tool_names[-1] == "calculate"
    several = read_contracts({"a": f"{PLACE}:Counter", "b": f"{PLACE}:Talker"})
    assert [*several] == ["a", "b"] and several["b"].responds


@pytest.mark.parametrize("name", [*ENVIRONMENTS])
def test_what_is_registered_is_an_environment(name: str) -> None:
    assert read_contract(name).make is not None


@pytest.mark.parametrize("name", [*TOOLS])
def test_what_is_registered_is_a_tool(name: str) -> None:
    assert len(read_contract("", [name]).tools) == 1


@pytest.mark.parametrize(
    ("name", "tools", "message"),
    [
        ("guess_nmber", (), "unknown name 'guess_nmber'; did you mean guess_number"),
        ("no_such_module:X", (), "config.environment: cannot import 'no_such_module:X'"),
        (
            f"{__name__}:Silent",
            (),
            "the tool act needs a docstring .*; a name that begins with an underscore is no tool",
        ),
        (f"{__name__}:Nothing", (), "has neither tools nor respond: it is no environment"),
        ("", ("calculator",), "config.tools: unknown name 'calculator'; did you mean calculate"),
        (f"{__name__}:PLACE", (), "cannot import|must be a class or a function"),
    ],
)
def test_a_mistake_is_one_line(name: str, tools: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_contract(name, tools)
