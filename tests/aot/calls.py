"""Records the calls of jitted functions, to be held against a list of programs."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from r1jax.core.structs import Program

# Where the functions live that programs are made of; of them no list holds those that make empty slots, sums or state,
# or that move what is there.
HOLDERS = ("r1jax.rollout.", "r1jax.learner.", "r1jax.rl.", "r1jax.stages.")
UNLISTED = {"_init", "init_rows", "make", "_mix", "_balance", "_zeros"}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An argument's array; sharding is None for a value of the host's."""

    shape: tuple[int, ...]
    dtype: Any
    sharding: Any

    def matches(self, listed: jax.ShapeDtypeStruct) -> bool:
        """Whether it is what a program lists."""
        placed = self.sharding is None or self.sharding.is_equivalent_to(listed.sharding, len(self.shape))
        return placed and (self.shape, self.dtype) == (listed.shape, listed.dtype)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call: the function's name, its arguments described, static keywords, which arguments it gave up, and a copy
    of the last argument's values.
    """

    name: str
    module: str
    arguments: tuple
    keywords: dict[str, Any]
    donated: tuple[int, ...]
    last: Any

    def find_difference(self, program: Program) -> str:
        """How the call differs from a listed program; "" if it does not."""
        if self.keywords != program.keywords:
            return f"keywords {self.keywords} for {program.keywords}"
        is_leaf = lambda x: isinstance(x, Leaf)
        called, structure = jax.tree_util.tree_flatten_with_path(self.arguments, is_leaf=is_leaf)
        if structure != jax.tree.structure(program.arguments):
            return f"arguments {structure} for {jax.tree.structure(program.arguments)}"
        for (path, leaf), listed in zip(called, jax.tree.leaves(program.arguments), strict=True):
            if not leaf.matches(listed):
                return f"{jax.tree_util.keystr(path)}: {leaf} for {listed}"
        if self.donated != (donated := program.function.donated):
            return f"donates {self.donated} for {donated}"
        return ""


class Recorded:
    """A jitted function that notes its calls by arrays; tracing through it leaves no note."""

    def __init__(self, function: Any, jitted: Any, calls: list[Call], options: dict[str, Any]):
        inner = function.func if isinstance(function, functools.partial) else function
        self.name, self.module, self.jitted, self.calls = inner.__name__, inner.__module__, jitted, calls
        donated = options.get("donate_argnums", ())
        self.donated = (donated,) if isinstance(donated, int) else tuple(donated)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, keywords))):
            return self.jitted(*args, **keywords)
        described = jax.tree.map(describe, args)
        last = jax.tree.map(np.asarray, args[-1]) if self.name == "_accumulate" else None
        result = self.jitted(*args, **keywords)
        donated = tuple(place for place, tree in enumerate(args) if any(map(is_deleted, jax.tree.leaves(tree))))
        self.calls.append(Call(self.name, self.module, described, keywords, donated, last))
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.jitted, name)


def describe(leaf: Any) -> Leaf:
    if isinstance(leaf, jax.Array):
        return Leaf(leaf.shape, leaf.dtype, leaf.sharding)
    value = np.asarray(leaf)
    return Leaf(value.shape, jax.dtypes.canonicalize_dtype(value.dtype), None)


def is_deleted(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and leaf.is_deleted()


def record(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls of all functions that are jitted from now on, in order."""
    calls: list[Call] = []
    jit = jax.jit

    def recording(function: Any = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(recording, **options)
        return Recorded(function, jit(function, **options), calls, options)

    monkeypatch.setattr(jax, "jit", recording)
    return calls


def compare(calls: list[Call], programs: list[Program]) -> None:
    """Asserts that every program was called as it is listed, and that every call of a listed function is listed."""
    by_name: dict[str, list[Program]] = {}
    for program in programs:
        by_name.setdefault(program.function.name, []).append(program)
    called = set()
    for call in calls:
        differences = {program.name: call.find_difference(program) for program in by_name.get(call.name, ())}
        same = {name for name, difference in differences.items() if not difference}
        assert same or not differences, (call.name, differences)
        called |= same
    own = {call.name for call in calls if call.module.startswith(HOLDERS)}
    assert own - UNLISTED == set(by_name), f"called and not listed, or listed and not called: {own ^ set(by_name)}"
    assert called == {program.name for program in programs}, "programs are listed that were not called"
