"""The contract of environments, that of TRL's `environment_factory`, so that its users' classes run unchanged.

An environment is an instance that lives one trajectory. `reset(**row) -> str | None` begins it; what it returns is
appended to the prompt. Every other public method with typed arguments and a docstring is a tool, sync or async; what it
raises is the tool's reply. Rewards receive `environments=[…]`; a method `get_reward()` is read by the reward
`environment_reward`. Beyond TRL's contract, `respond(reply) -> str | None` answers a reply that calls no tool; None
ends the trajectory. `reset`, `get_reward`, `respond`, and names that begin with an underscore are no tools.

`reset` receives the columns of the row, the arguments of config.episode, and `seed`, a function of the run's seed, the
step and the place of the prompt, which a row's own column `seed` replaces. A `reset` without `**` gets those that it
names.

Source: the documentation of TRL, "OpenEnv Integration for Training LLMs with Environments".
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r1jax.core.errors import UserError
from r1jax.environments.registry import ADAPTERS, ENVIRONMENTS, TOOLS
from r1jax.environments.worker_process import OWN, find_maker, import_place
from r1jax.text.tools.schemas import Schema, describe_function, name_of


@dataclasses.dataclass(frozen=True)
class Contract:
    """An environment as a value.

    place: `module:name` of its class, "" for plain tools alone. make: makes an instance. functions: places of plain
    tools by name. tools: definitions of all tools. responds, pays: whether it has `respond` and `get_reward`.
    """

    place: str
    make: Callable[[], Any]
    functions: Mapping[str, str]
    tools: tuple[Schema, ...]
    responds: bool = False
    pays: bool = False

    @property
    def tool_names(self) -> list[str]:
        """Names of the tools."""
        return [name_of(tool) for tool in self.tools]


def read_contracts(
    environment: str | Mapping[str, str], tools: Sequence[str] = (), *, key: str = "config.environment"
) -> dict[str, Contract]:
    """The contracts of config.environment and config.tools by name; of one environment, or of tools alone, under "".

    Raises UserError for what cannot be imported, is no environment, or has a tool that is not defined.
    """
    if isinstance(environment, Mapping):
        return {name: read_contract(place, tools, key=f"{key}.{name}") for name, place in environment.items()}
    return {"": read_contract(environment, tools, key=key)}


def read_contract(name: str, tools: Sequence[str] = (), *, key: str = "config.environment") -> Contract:
    """The contract of one environment with plain tools: a registered name, `module:name`, or an adapter's
    `PREFIX:WHAT`.
    """
    functions = {}
    definitions: list[Schema] = []
    for tool in tools:
        place = TOOLS.get(tool, tool)
        function = _import(place, "config.tools", TOOLS)
        functions[function.__name__] = place
        definitions.append(describe_function(function))
    if not name:
        return Contract("", object, functions, tuple(definitions))
    place, make, shown = _find_class(name, key)
    definitions = [*_describe_methods(shown, key), *definitions]
    names = [name_of(tool) for tool in definitions]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{key}: each tool may be given once, got {', '.join(sorted(twice))} twice")
    responds, pays = (callable(getattr(shown, method, None)) for method in ("respond", "get_reward"))
    if not (definitions or responds):
        raise UserError(f"{key} = {name!r} has neither tools nor respond: it is no environment")
    return Contract(place, make, functions, tuple(definitions), responds, pays)


def _find_class(name: str, key: str) -> tuple[str, Callable[[], Any], Any]:
    """Place, maker, and the class or an instance, whose methods are looked at."""
    prefix, _, rest = name.partition(":")
    if prefix in ADAPTERS and rest:
        place = f"{ADAPTERS[prefix]}({rest})"
        make = find_maker(place)
        return place, make, make
    place = ENVIRONMENTS.get(name, name)
    found = _import(place, key, ENVIRONMENTS)
    if isinstance(found, type):
        return place, found, found
    try:
        return place, found, found()
    except Exception as error:
        raise UserError(f"{key}: {name!r} makes no environment ({type(error).__name__}: {error})") from error


def _import(place: str, key: str, known: Mapping[str, str]) -> Any:
    if ":" not in place:
        close = difflib.get_close_matches(place, known, n=3) or sorted(known)
        raise UserError(f"{key}: unknown name {place!r}; did you mean {', '.join(close)}? (Or module:name.)")
    try:
        found = import_place(place)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}: cannot import {place!r} ({error})") from error
    if not callable(found):
        raise UserError(f"{key}: {place!r} must be a class or a function, got {type(found).__name__}")
    return found


def _describe_methods(shown: Any, key: str) -> list[Schema]:
    """Definitions of the tools of a class or an instance, in the order of their definition."""
    given = getattr(shown, "tool_definitions", None)  # of adapters, whose methods have no signatures of their own
    if isinstance(given, (list, tuple)):
        return [*given]
    kind = shown if isinstance(shown, type) else type(shown)
    names = dict.fromkeys(name for base in reversed(kind.__mro__[:-1]) for name in vars(base))
    methods = [name for name in names if not name.startswith("_") and name not in OWN]
    found = []
    for name in methods:
        static = inspect.getattr_static(kind, name)
        method = getattr(kind, name)
        if isinstance(static, property) or not inspect.isroutine(method):
            continue
        try:
            found.append(describe_function(method, is_method=not isinstance(static, (staticmethod, classmethod))))
        except UserError as error:
            raise UserError(f"{key}: {error}; a name that begins with an underscore is no tool") from None
    return found
