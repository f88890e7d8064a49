"""The program's side of a test with asserts: runs a model's program, then does what the checker asks; in a sandbox.

The program runs as a module, not as `__main__`, so that its main block does not run; it has no input. One that reads
input or exits on its own level keeps what it has defined by then.
"""

import asyncio
import builtins
import inspect
import linecache
import sys
import types
from typing import Any

from r1jax.sandbox.assert_values import Pipe, decode, encode

# Methods that an object may have by its type, and that Python calls by operators and builtin functions.
OPERATORS = frozenset(
    f"__{name}__"
    for name in (
        "add radd iadd sub rsub isub mul rmul imul matmul rmatmul imatmul truediv rtruediv itruediv floordiv rfloordiv "
        "ifloordiv mod rmod imod divmod rdivmod pow rpow ipow lshift rlshift ilshift rshift rrshift irshift and rand "
        "iand or ror ior xor rxor ixor neg pos abs invert int float complex index round trunc floor ceil bool len hash "
        "str repr format bytes getitem setitem delitem contains iter next reversed call enter exit lt le gt ge eq ne"
    ).split()
)
VALUES = (int, str, float, complex, bytes, tuple, frozenset)  # subclasses cross with their value
CONTAINERS = (list, dict, set, bytearray)  # and of these the value is asked for when it is needed


class Server:
    """Objects of the program by number, and what is done with them."""

    def __init__(self, pipe: Pipe, names: dict[str, Any]) -> None:
        self.pipe, self.names = pipe, names
        self.failure: BaseException | None = None
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._described: set[int] = set()
        self._new: dict[str, Any] = {}

    def answer_all(self) -> None:
        """Answers requests until they end."""
        while (request := self.pipe.receive()) is not None:
            self.answer(request)

    def answer(self, request: dict[str, Any]) -> None:
        """Does what a request says, and sends the value or the error."""
        try:
            if self.failure is not None:
                raise self.failure
            reply = self._perform(request)
            reply["classes"] = self._take_new()
            self.pipe.send(reply)
        except BaseException as error:
            self.pipe.send({"error": self._describe_error(error), "classes": self._take_new()})

    def ask(self, number: int, do: str, args: list[Any], named: dict[str, Any]) -> Any:
        """Has the checker do something with an object of the test."""
        self.pipe.send(
            {"do": do, "object": number, "args": self._encode(args), "named": self._encode(named)}
            | {"classes": self._take_new()}
        )
        while (reply := self.pipe.receive()) is not None:
            if "do" in reply:
                self.answer(reply)
            elif "error" in reply:
                raise decode(reply["error"], self._find)
            else:
                return decode(reply["value"], self._find)
        raise SystemExit

    def _perform(self, request: dict[str, Any]) -> dict[str, Any]:
        do = request["do"]
        if do == "find":
            return {"value": self._encode(self.names[request["name"]])}
        target = self._objects[request["object"]]
        args, named = decode(request["args"], self._find), decode(request["named"], self._find)
        if do == "next":
            items, done = [], False
            for _ in range(args[0]):
                try:
                    items.append(next(target))
                except StopIteration:
                    done = True
                    break
                except BaseException:
                    if not items:
                        raise
                    break
            return {"value": self._encode(items), "done": done}
        value = _operate(do, target, args, named)
        encoded = self._encode(args)
        return {"value": self._encode(value)} | ({} if encoded == request["args"] else {"args": encoded})

    def _encode(self, value: Any) -> Any:
        return encode(value, self._keep)

    def _keep(self, value: Any) -> dict[str, Any]:
        if isinstance(value, TestObject):
            return {"yours": object.__getattribute__(value, "_number")}
        number = self._number(value)
        if isinstance(value, type):
            return {"mine": number, "class": self._describe(value)}
        found: dict[str, Any] = {"mine": number, "of": self._describe(type(value))}
        if inspect.iscoroutine(value):
            found["coroutine"] = True
        if isinstance(value, BaseException):
            found["value"] = self._encode(list(value.args))
        elif isinstance(value, VALUES):
            found["value"] = self._encode(_bare(value))
        return found

    def _number(self, value: Any) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
        return self._numbers[id(value)]

    def _describe(self, kind: type) -> int:
        """The number of a class, which is described in the reply that has it first."""
        number = self._number(kind)
        if number not in self._described:
            self._described.add(number)
            bases = [
                base.__name__ if base.__module__ == "builtins" else self._describe(base)
                for base in kind.__bases__
                if base is not object and (base.__module__ != "builtins" or base not in CONTAINERS)
            ]
            plain = (object, *VALUES)
            has = {name for part in kind.__mro__ if part not in plain for name in vars(part) if name in OPERATORS}
            if issubclass(kind, BaseException):
                has -= {name for name in has if getattr(kind, name) is getattr(BaseException, name, None)}
            self._new[str(number)] = {
                "name": kind.__name__,
                "bases": bases,
                "has": sorted(has),
                "unhashable": kind.__hash__ is None,
                "container": next((base.__name__ for base in CONTAINERS if issubclass(kind, base)), None),
            }
        return number

    def _take_new(self) -> dict[str, Any]:
        taken, self._new = self._new, {}
        return taken

    def _describe_error(self, error: BaseException) -> Any:
        try:
            return self._encode(error)
        except BaseException:
            return {"exception": ["RuntimeError", {"list": []}]}

    def _find(self, handle: dict[str, Any]) -> Any:
        return self._objects[handle["yours"]] if "yours" in handle else TestObject(self, handle["mine"])


class TestObject:
    """A function or an object of the test, as the program has it: can be called, and has public attributes."""

    def __init__(self, server: Server, number: int) -> None:
        object.__setattr__(self, "_server", server)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return object.__getattribute__(self, "_server").ask(self._number, "call", list(args), named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return object.__getattribute__(self, "_server").ask(self._number, "get", [name], {})

    def __setattr__(self, name: str, value: Any) -> None:
        object.__getattribute__(self, "_server").ask(self._number, "set", [name, value], {})

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, TestObject) and other._number == self._number

    def __hash__(self) -> int:
        return hash(self._number)


def _operate(do: str, target: Any, args: list[Any], named: dict[str, Any]) -> Any:
    if do == "call":
        return target(*args, **named)
    if do == "get":
        return inspect.signature(target) if args[0] == "__signature__" else getattr(target, args[0])
    if do == "set":
        return setattr(target, args[0], args[1])
    if do == "delete":
        return delattr(target, args[0])
    if do == "equal":
        return [bool(target == other) for other in args[0]]
    if do == "contains":
        return [other in target for other in args[0]]
    if do == "value":
        return _bare(target)
    if do == "await":
        return asyncio.run(_wait(target))
    if do == "iter":
        return iter(target)
    if do in OPERATORS:
        return getattr(type(target), do)(target, *args, **named)
    raise ValueError(do)


async def _wait(target: Any) -> Any:
    return await target


def _bare(value: Any) -> Any:
    """The plain value in an object of a subclass of a builtin type, without a method of the subclass."""
    return next((read(value) for base, read in _BARE.items() if isinstance(value, base)), None)


_BARE: dict[type, Any] = {
    list: lambda value: list(list.__iter__(value)),
    tuple: lambda value: tuple(tuple.__iter__(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
    bytearray: lambda value: bytearray(memoryview(value)),
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: bytes.__bytes__,
    complex: complex.__pos__,
}


def main(path: str) -> None:
    """Runs the program of a file, then answers requests. What it prints goes nowhere."""
    pipe = Pipe()
    sys.set_int_max_str_digits(0)
    module = types.ModuleType("program")
    sys.modules["program"] = module
    sys.argv = [path]
    server = Server(pipe, vars(module))
    module.__dict__["__builtins__"] = builtins
    try:
        with open(path, encoding="utf-8") as file:
            source = file.read()
        linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
        exec(compile(source, path, "exec"), vars(module))
    except (EOFError, SystemExit):
        pass
    except BaseException as error:
        server.failure = error
    server.answer_all()
