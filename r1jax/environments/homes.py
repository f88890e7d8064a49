"""Homes of environments: a thread of the run, a process, or the sandbox. Each answers one request at a time.

A home that is killed costs its trajectory. A thread cannot be killed: a call that hangs keeps its thread until the run
ends, so environments that may hang belong into processes. A process is forked from a server that has imported the
environment's module, is killed with its whole group, and has a limit of memory. The sandbox (`r1jax.sandbox`) is for
environments that execute what a model wrote: neither network nor files, and the standard library only beside the
environment's own file.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import multiprocessing
import os
import pathlib
import selectors
import signal
import threading
import time
import types
from typing import Any, Protocol

from r1jax.core.errors import UserError
from r1jax.environments import worker_process
from r1jax.environments.contract import Contract
from r1jax.environments.episode_config import EpisodeConfig
from r1jax.environments.worker_process import Running, describe_error, serve_process
from r1jax.sandbox.box import FILES, Box, converse, python_command, require_isolation
from r1jax.sandbox.limits import Limits

START_SECONDS = 60.0  # for a process to start and make its environment
_CPU_SECONDS = 24 * 3600.0  # of a trajectory in the sandbox; its calls have deadlines


class HomeError(Exception):
    """A home that is lost: its first word says why (`time`, `memory`, `died`)."""


class Home(Protocol):
    """Where one environment lives."""

    def ask(self, operation: str, *arguments: Any) -> dict[str, Any]:
        """{"value": result} of an operation, or {"raised": what it raised}. Raises HomeError if the home is lost."""

    def kill(self) -> None:
        """Ends the environment at once, from any thread."""

    def find_state(self) -> Any:
        """The environment as rewards see it."""


class ThreadHome:
    """An environment in this process; deadlines are its caller's."""

    def __init__(self, contract: Contract, functions: dict[str, Any], config: EpisodeConfig, seed: int):
        self._running = Running(contract.make, functions)

    def ask(self, operation: str, *arguments: Any) -> dict[str, Any]:
        """The result of an operation, or what it raised."""
        try:
            return {"value": self._running.run(operation, *arguments)}
        except BaseException as error:  # a tool may raise SystemExit, too
            return {"raised": describe_error(error)}

    def kill(self) -> None:
        """Gives the environment up; nobody waits for its `_close`."""
        threading.Thread(target=self._running.close, name="environment ends", daemon=True).start()

    def find_state(self) -> Any:
        """The environment itself."""
        return self._running.environment


class _RemoteHome:
    """Base of homes outside of this process."""

    _seconds: float

    def ask(self, operation: str, *arguments: Any) -> dict[str, Any]:
        """The result of an operation, or what it raised; the home is lost at the deadline."""
        self._send(json.dumps([operation, *arguments], default=str))
        return self._receive(self._seconds)

    def find_state(self) -> Any:
        """A namespace of the attributes that JSON knows."""
        return types.SimpleNamespace(**(self.ask("get_state").get("value") or {}))

    def kill(self) -> None:
        """Kills the process."""
        raise NotImplementedError

    def _send(self, text: str) -> None:
        raise NotImplementedError

    def _receive(self, seconds: float) -> dict[str, Any]:
        raise NotImplementedError

    def _check_first(self) -> None:
        """Waits for the environment to be made."""
        first = self._receive(START_SECONDS)
        if "value" not in first:
            raise HomeError(f"died {first.get('raised', 'out of memory')}")


class ProcessHome(_RemoteHome):
    """An environment in a process of its own."""

    def __init__(self, contract: Contract, functions: dict[str, Any], config: EpisodeConfig, seed: int):
        self._seconds = config.call_seconds
        context = _fork_server(contract.place.partition(":")[0])
        self._connection, theirs = context.Pipe()
        arguments = (theirs, contract.place, dict(contract.functions), seed, config.memory_mb << 20)
        self._process = context.Process(target=serve_process, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._check_first()

    def kill(self) -> None:
        """Kills the process and its group."""
        if self._process.pid:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(Exception):
                self._process.kill()
                self._process.join(1.0)

    def _send(self, text: str) -> None:
        with _lost():
            self._connection.send_bytes(text.encode("utf-8", "replace"))

    def _receive(self, seconds: float) -> dict[str, Any]:
        with _lost():
            if not self._connection.poll(seconds):
                self.kill()
                raise HomeError(f"time a call took longer than {seconds:g} s")
            return _read(self._connection.recv_bytes())


class SandboxHome(_RemoteHome):
    """An environment in the sandbox; its module is one file that imports the standard library only."""

    def __init__(self, contract: Contract, functions: dict[str, Any], config: EpisodeConfig, seed: int):
        require_isolation()
        self._seconds = config.call_seconds
        limits = Limits(_CPU_SECONDS, _CPU_SECONDS, memory_bytes=config.memory_mb << 20)
        places = [place for place in (contract.place, *contract.functions.values()) if place]
        files = {
            pathlib.Path(worker_process.__file__ or "").name: pathlib.Path(worker_process.__file__ or "").read_bytes()
        }
        names = {}
        for place in places:
            module, _, name = place.partition(":")
            files[f"{_flatten(module)}.py"] = _read_source(module)
            names[place] = f"{_flatten(module)}:{name}"
        told = names.get(contract.place, ""), {key: names[place] for key, place in contract.functions.items()}
        command = python_command(f"{FILES}/worker_process.py", told[0], json.dumps(told[1]), str(seed))
        self._stack = contextlib.ExitStack()
        self._process = self._stack.enter_context(converse(Box(command, files=files, limits=limits)))
        self._rest = b""
        self._check_first()

    def kill(self) -> None:
        """Kills the sandbox."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._stack.close()

    def _send(self, text: str) -> None:
        with _lost():
            assert self._process.stdin is not None
            self._process.stdin.write(text.encode("utf-8", "replace") + b"\n")
            self._process.stdin.flush()

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        with _lost(), selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, end - time.monotonic())):
                    self.kill()
                    raise HomeError(f"time a call took longer than {seconds:g} s")
                more = os.read(self._process.stdout.fileno(), 1 << 16)
                if not more:
                    raise EOFError
                self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return _read(line)


HOMES: dict[str, Any] = {"thread": ThreadHome, "process": ProcessHome, "sandbox": SandboxHome}


@contextlib.contextmanager
def _lost() -> Any:
    """Turns the end of a process into HomeError."""
    try:
        yield
    except (EOFError, OSError, ValueError) as error:
        raise HomeError(f"died the process of the environment ended ({type(error).__name__})") from None


def _read(text: bytes) -> dict[str, Any]:
    """A reply, which an environment may have forged."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise HomeError("died the environment's process gave no reply")
    if "died" in value:
        raise HomeError(f"{value['died']} the environment ran out of memory")
    return value


@functools.cache
def _fork_server(module: str) -> Any:
    """A server that has imported a module, from which processes are forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([worker_process.__name__, *([module] if module else [])])
    return context


def _flatten(module: str) -> str:
    return module.replace(".", "_")


def _read_source(module: str) -> bytes:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin:
        raise UserError(f"config.episode.isolation = sandbox needs a module with a file, got {module}")
    return pathlib.Path(spec.origin).read_bytes()
