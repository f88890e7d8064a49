"""One environment and its operations, in a thread, in a process of its own, or in the sandbox.

In a process, requests and replies are JSON values, in the sandbox a line each. This file imports the standard library
only: the sandbox holds nothing else.

Operations: `reset` (a row), `call` (a tool's name, its arguments, and with the first call of a turn its other words,
for a method `_hear`), `respond` (a reply), `get_reward`, `get_state` (what rewards may read of an environment in a
process: its attributes that JSON knows).
"""

import asyncio
import contextlib
import ctypes
import importlib
import inspect
import io
import json
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

OWN = ("reset", "get_reward", "respond")  # public methods that are no tools
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class Running:
    """An environment while its trajectory lasts. make: makes it; functions: plain tools beside its own, by name."""

    def __init__(self, make: Callable[[], Any], functions: Mapping[str, Callable[..., Any]]):
        self.environment, self.functions = make(), functions
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, operation: str, *arguments: Any) -> Any:
        """The result of an operation; passes on what it raises."""
        return getattr(self, f"_{operation}")(*arguments)

    def close(self) -> None:
        """Calls `_close` of the environment, if it has that, and gives up its event loop."""
        with contextlib.suppress(Exception):
            self._await(getattr(self.environment, "_close", lambda: None)())
        if self._loop is not None:
            self._loop.close()

    def _reset(self, row: Mapping[str, Any]) -> Any:
        if not hasattr(self.environment, "reset"):
            return None
        return self._await(self.environment.reset(**select(self.environment.reset, row)))

    def _call(self, name: str, arguments: Mapping[str, Any], said: str | None = None) -> str:
        if said is not None and hasattr(self.environment, "_hear"):
            self._await(self.environment._hear(said))
        tool = self.functions.get(name) or getattr(self.environment, name)
        try:
            inspect.signature(tool).bind(**arguments)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        return to_text(self._await(tool(**arguments)))

    def _respond(self, reply: str) -> Any:
        return self._await(self.environment.respond(reply))

    def _get_reward(self) -> Any:
        return self._await(self.environment.get_reward())

    def _get_state(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self.environment).items() if is_json(value)}

    def _await(self, value: Any) -> Any:
        """The value, or that of an awaitable, in an event loop that lasts as long as the environment."""
        if not inspect.isawaitable(value):
            return value
        if self._loop is None:
            self._loop = asyncio.new_event_loop()

        async def wait() -> Any:
            return await value

        return self._loop.run_until_complete(wait())


def select(function: Callable[..., Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that a function takes: all if it takes `**`."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(row)
    return {parameter.name: row[parameter.name] for parameter in parameters if parameter.name in row}


def to_text(value: Any) -> str:
    """A tool's result as text: texts as they are, other values as JSON, or as Python writes them."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False) if is_json(value) else str(value)


def is_json(value: Any) -> bool:
    """Whether a value can be written as JSON and read back as it is, but for tuples."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def describe_error(error: BaseException) -> str:
    """Text of an error for a model: its type and message."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def import_place(place: str) -> Any:
    """The object at `module:name`."""
    module, _, name = place.partition(":")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def find_maker(place: str) -> Callable[[], Any]:
    """The maker of the environment of a place: `module:name`, `module:function(TEXT)`, or "" for none."""
    if not place:
        return object
    if place.endswith(")"):
        name, _, text = place[:-1].partition("(")
        return import_place(name)(text)
    return import_place(place)


def answer(running: Running, request: Sequence[Any]) -> dict[str, Any]:
    """The reply to a request (operation, arguments…): its value, or what it raised."""
    try:
        value = running.run(*request)
        return {"value": value} if is_json(value) else {"raised": f"a value that JSON does not know: {type(value)}"}
    except MemoryError:
        return {"died": "memory"}
    except BaseException as error:
        return {"raised": describe_error(error)}


def make_running(place: str, functions: Mapping[str, str], seed: int) -> Running:
    """The environment of a place, with plain tools by name and place. seed: of Python's own random numbers."""
    random.seed(seed)
    return Running(find_maker(place), {name: import_place(at) for name, at in functions.items()})


def serve_process(connection: Any, place: str, functions: Mapping[str, str], seed: int, memory: int) -> None:
    """Answers requests of a `multiprocessing` connection until it closes. memory: most bytes of address space."""
    os.setsid()  # a group of its own, which is killed as a whole
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        running = make_running(place, functions, seed)
        connection.send_bytes(b'{"value": null}')
        while True:
            request = json.loads(connection.recv_bytes())
            connection.send_bytes(json.dumps(answer(running, request)).encode("utf-8", "replace"))
    except EOFError:
        return
    except MemoryError:
        os._exit(1)
    except Exception as error:  # the environment cannot be made
        connection.send_bytes(json.dumps({"raised": describe_error(error)}).encode("utf-8", "replace"))


def serve_lines(place: str, functions: Mapping[str, str], seed: int) -> None:
    """Answers requests that come line by line on stdin. What the environment prints does not reach the replies."""
    requests, replies = io.TextIOWrapper(os.fdopen(os.dup(0), "rb"), "utf-8"), os.fdopen(os.dup(1), "w")
    with open(os.devnull, "r+") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    try:
        running = make_running(place, functions, seed)
        first: dict[str, Any] = {"value": None}
    except BaseException as error:
        first = {"raised": describe_error(error)}
    print(json.dumps(first), file=replies, flush=True)
    for line in requests:
        print(json.dumps(answer(running, json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    serve_lines(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
