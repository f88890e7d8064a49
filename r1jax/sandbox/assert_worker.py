"""Runs a test of a model's functions in two processes, so that the test's asserts cannot be bypassed; run by path
inside sandboxes.

    python assert_worker.py serve PROGRAM    runs the model's program, then answers requests to call what it defines
    python assert_worker.py check TEST       runs the test, resolving unknown names in the other process; exit code 0
                                             means that the test passed

Asserts in the same process as a model's code prove nothing: the code could call `sys.exit(0)`, return an object that
equals everything, or rewrite the checker. Here only plain data crosses, as lines of JSON over pipes: None, bool, int,
float, str, list, tuple, set, dict, of exactly these types. Any other object crosses as a handle, which can be called,
indexed, iterated and asked for attributes, and which equals nothing. The program sees arguments, never expected values.

Left out: functions as arguments, `isinstance` against the program's classes, changes to arguments below the top level.
"""

import ast
import builtins
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_MAX_LINE = 16 << 20
_MAX_ITEMS = 1_000_000


def encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """Encodes plain data as JSON; `keep(object)` returns a handle for any other object."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple, set, frozenset):
        return {kind.__name__: [encode(item, keep) for item in value]}
    if kind is dict:
        return {"dict": [[encode(key, keep), encode(item, keep)] for key, item in value.items()]}
    return {"object": keep(value)}


def decode(value: Any, find: Callable[[int], Any]) -> Any:
    """Inverse of `encode`; `find(handle)` returns the object of a handle."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "object":
        return find(content)
    if kind == "dict":
        return {decode(key, find): decode(item, find) for key, item in content}
    makers = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
    return makers[kind](decode(item, find) for item in content)


def serve(path: str) -> None:
    """Runs the program and answers requests until the input ends. Output of the program is discarded."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    names: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
    objects: list[Any] = []
    failure: BaseException | None = None

    def keep(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    try:
        with open(path, encoding="utf-8") as file:
            exec(compile(file.read(), "program", "exec"), names)
    except BaseException as error:
        failure = error
    for line in requests:
        try:
            request = json.loads(line)
            if failure is not None:
                raise failure
            target = names[request["name"]] if "name" in request else objects[request["object"]]
            args, named = (decode(request[key], objects.__getitem__) for key in ("args", "named"))
            value = _operate(request["do"], target, args, named)
            reply = {"value": encode(value, keep), "args": encode(args, keep)}
        except BaseException as error:
            reply = {"error": type(error).__name__}
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def _operate(do: str, target: Any, args: list[Any], named: dict[str, Any]) -> Any:
    if do == "find":
        return target
    if do == "call":
        return target(*args, **named)
    if do == "attribute":
        return getattr(target, args[0])
    if do == "item":
        return target[args[0]]
    if do == "items":
        return [item for _, item in zip(range(_MAX_ITEMS), target, strict=False)]
    if do == "contains":
        return args[0] in target
    return len(target) if do == "len" else bool(target)


class Remote:
    """Proxy of a function, class or object of the program. Equal only to itself."""

    def __init__(self, link: "Link", place: dict[str, Any]) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_place", place)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._link.ask("call", self._place, list(args), named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.ask("attribute", self._place, [name])

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("item", self._place, [key])

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._link.ask("items", self._place)))

    def __contains__(self, item: Any) -> bool:
        return self._link.ask("contains", self._place, [item]) is True

    def __len__(self) -> int:
        return int(self._link.ask("len", self._place))

    def __bool__(self) -> bool:
        return self._link.ask("bool", self._place) is True


class Link:
    """The checker's end of the pipes to the program."""

    def __init__(self) -> None:
        self.replies, self.requests = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(2, 1)

    def ask(self, do: str, place: dict[str, Any], args: Sequence[Any] = (), named: dict[str, Any] | None = None) -> Any:
        """Sends an operation to the program; returns its value, or raises the built-in exception of the same name."""
        request = {"do": do, **place, "args": encode(list(args), _place), "named": encode(named or {}, _place)}
        self.requests.write(json.dumps(request).encode() + b"\n")
        self.requests.flush()
        line = self.replies.readline(_MAX_LINE)
        if not line.endswith(b"\n"):
            raise SystemExit("the program ended, or its answer exceeds the size limit")
        reply = json.loads(line)
        if "error" in reply:
            kind = getattr(builtins, str(reply["error"]), None)
            if do == "find":
                raise NameError(place["name"])
            # Only the checker itself may raise AssertionError.
            is_known = isinstance(kind, type) and issubclass(kind, Exception) and kind is not AssertionError
            raise kind("in the program") if is_known and kind else RuntimeError("in the program")
        find = lambda handle: Remote(self, {"object": int(handle)})
        for mine, changed in zip(args, decode(reply.get("args"), find) or (), strict=False):
            if type(mine) is type(changed) is list:
                mine[:] = changed
            elif type(mine) is type(changed) and isinstance(mine, (dict, set)):
                mine.clear()
                mine.update(changed)
        return decode(reply["value"], find)


def _place(value: Any) -> int:
    if isinstance(value, Remote):
        return value._place["object"]
    raise TypeError(f"{type(value).__name__} cannot be passed to the program")


def check(path: str) -> None:
    """Runs the test with the program's names defined."""
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read(), "test")
    link = Link()
    names: dict[str, Any] = {"__name__": "test", "__builtins__": builtins}
    for name in sorted(_unknown_names(tree)):
        if name in sys.stdlib_module_names:  # a test without an import must not get the program's own `math`
            names[name] = importlib.import_module(name)
            continue
        with contextlib.suppress(NameError):  # Python raises it again where the name is used
            names[name] = link.ask("find", {"name": name})
    exec(compile(tree, "test", "exec"), names)


def _unknown_names(tree: ast.AST) -> set[str]:
    loaded: set[str] = set()
    made = set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (loaded if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            made.add(node.name)
    return loaded - made


if __name__ == "__main__":
    {"serve": serve, "check": check}[sys.argv[1]](sys.argv[2])
