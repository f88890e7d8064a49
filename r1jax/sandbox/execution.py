"""Execution of programs for code rewards: one interface, and its local implementation in the sandbox.

A provider is any object with `run(program, test) -> Outcome | None`; it is called from several threads. None means that
the provider itself failed, and gives no reward. A custom service is a function `(isolation) -> provider`, named in the
config as `module:function`; the services that open-r1 uses (e2b, morph, piston) are not included.
"""

import dataclasses
import functools
import importlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from r1jax.core.errors import UserError
from r1jax.sandbox import assert_checker, assert_program, assert_syntax, assert_values
from r1jax.sandbox import box as sandbox
from r1jax.sandbox.box import FILES, SCRATCH, Box, Limits, Outcome, python_command

# Starts one side of a test with asserts, out of this package's files in the box.
_LAUNCH = (
    "import sys; sys.path.insert(0, '/files/.'); from r1jax.sandbox import {} as side; "
    "del sys.path[0]; side.main(sys.argv[1])"
)
_ABSENT_SERVICES = ("e2b", "morph", "piston")
_PAUSE_SECONDS = 0.5  # before a sandbox that did not start is tried once more
_logger = logging.getLogger(__name__)
_COMPILER = ("g++", "-O2", "-std=c++17", "-pipe", "-o", f"{SCRATCH}/main")
_COMPILE = f'"$@" >&2 && exec cat {SCRATCH}/main'
_MOST_BINARY_BYTES = 64 << 20
_COMPILE_LIMITS = Limits(60, 60, memory_bytes=1 << 30, scratch_bytes=128 << 20, output_bytes=_MOST_BINARY_BYTES)
_KEPT_BINARY_BYTES = 256 << 20


@dataclass(frozen=True)
class Program:
    """Source text of a program: Python, or C++ of one or more files by name (`more`), compiled once."""

    source: str
    language: str = "python"
    more: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Test:
    """One run of a program: text on stdin, or Python asserts about its functions (`ok` then means that they hold).

    `files` are placed beside the program as `/files/NAME`. `input_file` and `output_file` are names in the scratch
    folder, for programs that do not use stdin and stdout; the outcome's stdout is then the content of that file.
    """

    stdin: str = ""
    asserts: str | None = None
    files: tuple[tuple[str, str], ...] = ()
    arguments: tuple[str, ...] = ()
    input_file: str = ""
    output_file: str = ""
    limits: Limits = field(default_factory=Limits)


class Provider(Protocol):
    """Interface of an execution service."""

    def run(self, program: Program, test: Test) -> Outcome | None:
        """Runs one test of one program; None if the service failed. Called from several threads at once."""


class LocalProvider:
    """Runs programs in the sandbox of this machine."""

    def __init__(self, isolation: str = "bubblewrap") -> None:
        """Raises UserError if the sandbox is missing and the risk is not accepted."""
        sandbox.require_isolation(isolation)
        self.isolation = isolation
        self._binaries = _Binaries(_KEPT_BINARY_BYTES)

    def run(self, program: Program, test: Test) -> Outcome | None:
        """Outcome of the test; for a program that does not compile, the compiler's, with status `compile`; None if the
        sandbox could not be started, twice.
        """
        for pause in (_PAUSE_SECONDS, 0.0):
            outcome = self._run(program, test)
            if outcome.status != "unstarted":
                return outcome
            time.sleep(pause)
        _logger.warning("the sandbox did not start: %s", outcome.stderr[-300:].decode(errors="replace").strip())
        return None

    def _run(self, program: Program, test: Test) -> Outcome:
        files = {name: content.encode(errors="replace") for name, content in test.files}
        if program.language == "python":
            files["main.py"] = program.source.encode(errors="replace")
            command = python_command(f"{FILES}/main.py", *test.arguments)
        else:
            outcome, binary = self._binaries.get(program) or self._compile(program)
            if outcome.status == "unstarted":
                return outcome
            if outcome.status != "ok":
                return dataclasses.replace(outcome, status="compile")
            files["main"] = binary
            command = (f"{FILES}/main", *test.arguments)
        if test.asserts is not None:
            return self._check(files["main.py"], test)
        stdin = test.stdin.encode(errors="replace")
        if test.input_file or test.output_file:
            files["input"], stdin = stdin, b""
            copy_in = f'cp {FILES}/input "{test.input_file}" && ' if test.input_file else ""
            copy_out = f' >/dev/null && cat "{test.output_file}"' if test.output_file else ""
            command = ("/bin/sh", "-c", f'{copy_in}"$@" <{FILES}/input{copy_out}', "sh", *command)
        return sandbox.run(Box(command, stdin, files, test.limits), self.isolation)

    def _check(self, source: bytes, test: Test) -> Outcome:
        checker, program = (
            Box(
                python_command("-c", _LAUNCH.format(side), f"{FILES}/{name}.py"),
                files={**_assert_sides(), f"{name}.py": code},
                limits=test.limits,
            )
            for side, name, code in (
                ("assert_checker", "check", (test.asserts or "").encode(errors="replace")),
                ("assert_program", "main", source),
            )
        )
        return sandbox.run_pair(checker, program, self.isolation)

    def _compile(self, program: Program) -> tuple[Outcome, bytes]:
        if program.language != "cpp":
            raise UserError(f"the local provider runs python and cpp, got {program.language!r}")
        files = {"main.cpp": program.source, **dict(program.more)}
        sources = [f"{FILES}/{name}" for name in files if name.endswith((".cpp", ".cc"))]
        box = Box(
            ("/bin/sh", "-c", _COMPILE, "sh", *_COMPILER, f"-I{FILES}", *sources),
            files={name: content.encode(errors="replace") for name, content in files.items()},
            limits=_COMPILE_LIMITS,
            compiles=True,
        )
        outcome = sandbox.run(box, self.isolation)
        compiled = dataclasses.replace(outcome, stdout=b""), outcome.stdout if outcome.status == "ok" else b""
        if outcome.status != "unstarted":
            self._binaries.put(program, compiled)
        return compiled


class _Binaries:
    """Compiled programs, the most recent ones of at most so many bytes. Thread-safe."""

    def __init__(self, most_bytes: int) -> None:
        self._kept: OrderedDict[Program, tuple[Outcome, bytes]] = OrderedDict()
        self._most_bytes, self._bytes, self._lock = most_bytes, 0, threading.Lock()

    def get(self, program: Program) -> tuple[Outcome, bytes] | None:
        with self._lock:
            if program in self._kept:
                self._kept.move_to_end(program)
            return self._kept.get(program)

    def put(self, program: Program, compiled: tuple[Outcome, bytes]) -> None:
        with self._lock:
            if program in self._kept:
                return
            self._kept[program] = compiled
            self._bytes += _size(program, compiled)
            while self._bytes > self._most_bytes:
                self._bytes -= _size(*self._kept.popitem(last=False))


def _size(program: Program, compiled: tuple[Outcome, bytes]) -> int:
    return len(compiled[1]) + len(compiled[0].stderr) + len(program.source) + sum(len(text) for _, text in program.more)


def make_provider(name: str, isolation: str = "bubblewrap") -> Provider:
    """Provider by name: `local`, or `module:function`. Raises UserError."""
    if name == "local":
        return _local(isolation)
    if name in _ABSENT_SERVICES or ":" not in name:
        raise UserError(f"provider_type of code rewards must be local or a module:function, got {name!r}")
    module, _, function = name.partition(":")
    try:
        maker = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"provider_type: cannot import {name!r} ({error})") from error
    return maker(isolation)


def warm_up(provider_type: str = "local", isolation: str = "bubblewrap") -> None:
    """Checks the provider before training starts, so that a config error shows before the first rollout."""
    make_provider(provider_type, isolation)


@functools.cache
def _assert_sides() -> dict[str, bytes]:
    """Files of both sides of a test with asserts, by their names in the box."""
    sides = (assert_values, assert_syntax, assert_program, assert_checker)
    paths = [Path(side.__file__ or "") for side in sides]
    return {f"r1jax/sandbox/{path.name}": path.read_bytes() for path in paths}


@functools.cache
def _local(isolation: str) -> LocalProvider:
    return LocalProvider(isolation)


def run_in_parallel(function: Callable[[Any], Any], jobs: Sequence[Any], count: int) -> list[Any]:
    """Calls `function` on each job in `count` threads, for jobs that mostly wait for processes. Keeps the order."""
    with ThreadPoolExecutor(max(1, count)) as pool:
        return list(pool.map(function, jobs))
