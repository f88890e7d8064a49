"""The checker's side of a test with asserts: runs the test, and asks the program's process for what the test does not
define; run in a sandbox. Exit code 0 means that the test passed.

Asserts in the same process as a model's code prove nothing: the code could call `sys.exit(0)`, return an object that
equals everything, or rewrite the checker. Here the program hands over values, and every comparison with a value of the
test is made on this side. The program sees arguments, never expected values.

Objects of the program are mirrored: its classes by classes with the same name, bases and operators, its objects by one
instance each, its exceptions by exceptions. An operator between two of its objects is computed by the program. Between
an object and a plain value it is too if the test itself made the object by calling a class that it names (with a
capital), because then the operator is what is tested; equality and `in` are then also asked about other values, and a
program that accepts one of those is taken to have denied. An object that a function returned equals no plain value
unless its type derives from a plain one (an `IntEnum`, a named tuple, a subclass of list); then that value is compared.

Changes that a call makes to a list, dict or set of the test are seen from the next statement on, or at once if the call
returned None: `f(x) == sorted(x)` compares with x as it was.

Left out: classes of the test that inherit from the program's, and changes below the top level of an argument.
"""

import ast
import builtins
import importlib
import random
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from r1jax.sandbox.assert_syntax import SETTLE, settle_behind_statements, unknown_names
from r1jax.sandbox.assert_values import Pipe, decode, encode

_MUTABLE = (list, dict, set)
_VALUES = (int, str, float, complex, bytes, tuple, frozenset)
_COMPARED = frozenset(("__eq__", "__ne__"))
_SHOWN = frozenset(("__str__", "__repr__", "__format__"))
_ASKED_ALWAYS = frozenset(
    ("__getitem__", "__setitem__", "__delitem__", "__call__", "__round__", "__format__", "__exit__")
)
_MOST_AHEAD = 256  # items of an iterator that are fetched at once
_AHEAD_AFTER = 3


class Link:
    """The checker's end of the pipes to the program, and the mirrors of what it handed over."""

    def __init__(self) -> None:
        self.pipe = Pipe()
        self._classes: dict[int, Mirror] = {}
        self._instances: dict[int, Any] = {}
        self._mine: list[Any] = []
        self._changed: list[tuple[Any, Any]] = []

    def find(self, name: str) -> Any:
        """The object that a name has in the program. Raises NameError."""
        try:
            found = self.ask("find", None, name=name)
        except KeyError:
            raise NameError(name) from None
        if isinstance(found, Mirror) and name[:1].isupper():
            type.__setattr__(found, "_r1jax_named", True)
        return found

    def ask(
        self, do: str, target: Any, args: Sequence[Any] = (), named: dict[str, Any] | None = None, **more: Any
    ) -> Any:
        """Has the program do something; returns the value or raises the error."""
        for argument in args:
            self.settle(argument)
        request = {"do": do, "args": self._encode(list(args)), "named": self._encode(named or {})} | more
        self.pipe.send(request | ({} if target is None else {"object": _number(target)}))
        while (reply := self.pipe.receive()) is not None:
            self._learn(reply.get("classes", {}))
            if "do" in reply:
                self._answer(reply)
                continue
            if "error" in reply:
                raise self._to_error(reply["error"], do)
            value = decode(reply["value"], self._find)
            if "args" in reply:
                for mine, changed in zip(args, decode(reply["args"], self._find), strict=False):
                    if type(mine) is type(changed) and isinstance(mine, _MUTABLE):
                        self._changed.append((mine, changed))
                        if value is None:
                            self.settle(mine)
            return (value, reply.get("done")) if do == "next" else value
        raise SystemExit("the program ended, or its answer exceeds the size limit")

    def settle(self, only: Any = None) -> None:
        """Changes arguments of calls as the program did: one of them, or all."""
        waiting, self._changed = self._changed, []
        for mine, changed in waiting:
            if only is not None and mine is not only:
                self._changed.append((mine, changed))
            elif isinstance(mine, list):
                mine[:] = changed
            else:
                mine.clear()
                mine.update(changed)

    def _encode(self, value: Any) -> Any:
        return encode(value, self._keep)

    def _keep(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Mirror) or isinstance(type(value), Mirror):
            return {"yours": _number(value)}
        is_own = getattr(type(value), "__module__", "") == "test" or isinstance(value, type)
        if not callable(value) and not is_own:
            raise TypeError(f"{type(value).__name__} cannot be handed to the program")
        for number, kept in enumerate(self._mine):
            if kept is value:
                return {"mine": number}
        self._mine.append(value)
        return {"mine": len(self._mine) - 1}

    def _answer(self, request: dict[str, Any]) -> None:
        """Does what the program asks of a function or an object of the test: calls, and public attributes."""
        try:
            target = self._mine[request["object"]]
            args, named = decode(request["args"], self._find), decode(request["named"], self._find)
            if request["do"] == "call":
                value = target(*args, **named)
            elif type(target).__module__ != "test" or str(args[0]).startswith("_"):
                raise AttributeError(args[0])
            else:
                change: Any = setattr
                value = getattr(target, args[0]) if request["do"] == "get" else change(target, *args)
            self.pipe.send({"value": self._encode(value)})
        except Exception as error:
            self.pipe.send({"error": {"exception": [type(error).__name__, {"list": [str(error)]}]}})

    def _find(self, handle: dict[str, Any]) -> Any:
        if "yours" in handle:
            return self._mine[handle["yours"]]
        if "class" in handle:
            return self._classes[handle["class"]]
        number = handle["mine"]
        if number not in self._instances:
            self._instances[number] = self._mirror(number, handle)
        return self._instances[number]

    def _mirror(self, number: int, handle: dict[str, Any]) -> Any:
        kind = self._classes[handle["of"]]
        value = decode(handle.get("value"), self._find)
        if issubclass(kind, BaseException):
            instance: Any = BaseException.__new__(kind, *value)
        else:
            make: Any = kind.__new__
            instance = make(kind) if value is None else make(kind, value)
        object.__setattr__(instance, "_r1jax_number", number)
        return _wait(instance) if handle.get("coroutine") else instance

    def _learn(self, classes: dict[str, Any]) -> None:
        """Makes the mirrors of classes that are new, bases first."""
        waiting = {int(number): told for number, told in classes.items()}

        def learn(number: int) -> Mirror:
            if number in self._classes:
                return self._classes[number]
            told = waiting[number]
            named: list[Any] = [
                learn(base) if isinstance(base, int) else getattr(builtins, base, None) for base in told["bases"]
            ]
            bases = tuple(b for b in named if isinstance(b, Mirror) or b in _VALUES or _is_error(b)) or (object,)
            try:
                mirror = Mirror(str(told["name"]), bases, _methods(told, bases))
            except TypeError:  # bases that do not go together here
                mirror = Mirror(str(told["name"]), (object,), _methods(told, (object,)))
            for name, given in (("_r1jax_number", number), ("_r1jax_link", self), ("_r1jax_named", False)):
                type.__setattr__(mirror, name, given)
            self._classes[number] = mirror
            return mirror

        for number in waiting:
            learn(number)

    def _to_error(self, told: Any, do: str) -> BaseException:
        error = decode(told, self._find)
        if do == "find":
            return KeyError("name") if isinstance(error, KeyError) else RuntimeError("the program failed")
        # Nothing but `next` may end an iteration, and nothing of the program may end the checker.
        if isinstance(error, Exception) and not isinstance(error, (StopIteration, StopAsyncIteration)):
            return error
        return RuntimeError("in the program")


class Mirror(type):
    """The class of mirrored classes: calls, attributes and items of a class are the program's."""

    def __call__(cls, *args: Any, **named: Any) -> Any:
        made = cls._r1jax_link.ask("call", cls, args, named)
        if cls._r1jax_named and isinstance(made, cls):
            object.__setattr__(made, "_r1jax_made", True)
        return made

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_r1jax"):
            raise AttributeError(name)
        return cls._r1jax_link.ask("get", cls, [name])

    def __setattr__(cls, name: str, value: Any) -> None:
        cls._r1jax_link.ask("set", cls, [name, value])

    def __iter__(cls) -> Iterator[Any]:
        return iter(cls._r1jax_link.ask("iter", cls))

    def __getitem__(cls, key: Any) -> Any:
        return cls._r1jax_link.ask("__getitem__", cls, [key])

    def __len__(cls) -> int:
        return int(cls._r1jax_link.ask("__len__", cls))

    def __contains__(cls, item: Any) -> bool:
        return any(item is member or item == member for member in cls)

    def __bool__(cls) -> bool:
        return True


def _number(target: Any) -> int:
    return object.__getattribute__(target, "_r1jax_number") if not isinstance(target, Mirror) else target._r1jax_number


def _methods(told: dict[str, Any], bases: tuple[type, ...]) -> dict[str, Any]:
    """The namespace of a mirrored class."""
    found: dict[str, Any] = {
        "__module__": "program",
        "__getattr__": _get,
        "__setattr__": lambda self, name, value: self._r1jax_link.ask("set", self, [name, value]),
        "__delattr__": lambda self, name: self._r1jax_link.ask("delete", self, [name]),
        "__doc__": property(lambda self: self._r1jax_link.ask("get", self, ["__doc__"])),
    }
    is_value = any(issubclass(base, _VALUES) for base in bases)
    for name in told["has"]:
        if not is_value or name in _SHOWN:
            found[name] = _METHODS.get(name) or _operator(str(name))
    if told["unhashable"]:
        found["__hash__"] = None
    elif "__eq__" in found and "__hash__" not in found:
        found["__hash__"] = _operator("__hash__")
    if told["container"]:
        for name in ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"):
            found[name] = _by_value(name)
    return found


def _get(self: Any, name: str) -> Any:
    if name.startswith("_r1jax"):
        raise AttributeError(name)
    return self._r1jax_link.ask("get", self, [name])


def _operator(name: str) -> Callable[..., Any]:
    """A method that has the program do it, or returns NotImplemented where it must not."""

    def method(self: Any, *args: Any, **named: Any) -> Any:
        is_made = getattr(self, "_r1jax_made", False)
        if not (is_made or not args or name in _ASKED_ALWAYS or all(_is_mirror(argument) for argument in args)):
            return NotImplemented
        if is_made and name in _COMPARED and not _is_mirror(args[0]):
            return _equals(self, args[0], "equal") is (name == "__eq__")
        value = self._r1jax_link.ask(name, self, args, named)
        if is_made and isinstance(type(value), Mirror) and name not in ("__getitem__", "__call__"):
            object.__setattr__(value, "_r1jax_made", True)
        return value

    return method


def _by_value(name: str) -> Callable[..., Any]:
    """A comparison of an object of a container's subclass by what the container holds."""

    def method(self: Any, other: Any) -> Any:
        other = self._r1jax_link.ask("value", other) if _is_mirror(other) else other
        return getattr(self._r1jax_link.ask("value", self), name)(other)

    return method


def _next(self: Any) -> Any:
    """The next item, of several that were fetched at once when many are asked for."""
    ahead, asked, done = self.__dict__.get("_r1jax_ahead", ([], 0, False))
    if not ahead and not done:
        count = 1 if asked < _AHEAD_AFTER else min(_MOST_AHEAD, 2 ** (asked - _AHEAD_AFTER))
        ahead, done = self._r1jax_link.ask("next", self, [count])
        asked += 1
    if not ahead:
        raise StopIteration
    item = ahead.pop(0)
    self.__dict__["_r1jax_ahead"] = (ahead, asked, done)
    return item


def _contains(self: Any, item: Any) -> bool:
    if getattr(self, "_r1jax_made", False) or _is_mirror(item):
        return _equals(self, item, "contains")
    return any(item is other or item == other for other in self)


def _iter(self: Any) -> Iterator[Any]:
    found = self._r1jax_link.ask("iter", self)
    return found if hasattr(type(found), "__next__") else iter(found)


def _exit(self: Any, kind: Any, error: Any, trace: Any) -> Any:
    return self._r1jax_link.ask("__exit__", self, [kind, error, None])


_METHODS: dict[str, Any] = {"__next__": _next, "__contains__": _contains, "__iter__": _iter, "__exit__": _exit}


def _equals(self: Any, other: Any, do: str) -> bool:
    """Whether the program says yes about a value, and no about others like it that the test does not expect."""
    chance = random.SystemRandom()
    others: list[Any] = [] if _is_mirror(other) else [f"{chance.getrandbits(64):x}", *_others(other, chance)]
    asked = [other, *others]
    order = list(range(len(asked)))
    chance.shuffle(order)
    said = self._r1jax_link.ask(do, self, [[asked[number] for number in order]])
    return [number for number, yes in zip(order, said, strict=True) if yes] == [0]


def _others(value: Any, chance: random.SystemRandom) -> list[Any]:
    if type(value) in (int, float):
        return [value + sign * chance.randint(1, 9 + int(abs(value))) for sign in (1, -1)] if abs(value) < 1e15 else [1]
    if type(value) in (list, tuple):
        return [value + type(value)([chance.getrandbits(40)])]
    return [value + f"{chance.getrandbits(40):x}"] if type(value) is str else []


def _is_error(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


def _is_mirror(value: Any) -> bool:
    return isinstance(value, Mirror) or isinstance(type(value), Mirror)


async def _wait(instance: Any) -> Any:
    return instance._r1jax_link.ask("await", instance)


def main(path: str) -> None:
    """Runs the test of a file with the program's names within reach."""
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read(), path)
    sys.set_int_max_str_digits(0)
    link = Link()
    module = types.ModuleType("test")
    sys.modules["test"] = module
    names = vars(module)
    names[SETTLE] = link.settle
    stars = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree))
    for name, has_attributes_only in sorted(unknown_names(tree).items()):
        if has_attributes_only and name in sys.stdlib_module_names:
            names[name] = importlib.import_module(name)  # a test without an import must not get the program's `math`
            continue
        try:
            names[name] = link.find(name)
        except NameError:  # raised again by Python where the name is used
            if name in sys.stdlib_module_names and not stars:
                names[name] = importlib.import_module(name)
    tree = settle_behind_statements(tree)
    exec(compile(tree, path, "exec"), names)
    sys.stdout.flush()
