"""Failures told between the processes of a run, so that all end together and each names the cause.

A process that fails alone would leave the others waiting in a collective until its heartbeats are missed, and they
would end with the words of a library. So a process that ends before the run does writes why into the key-value store of
jax's coordination service; a thread of every other process looks for that, prints it, and ends the process with the
same exit code. A process that does not confirm in time is dead, and is named.

The store lives in the first process, which therefore ends last. If the first process is killed, jax itself ends the
others.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from typing import Any

from r1jax.core.errors import LOST, STALLED

CONFIRM_SECONDS = 15.0  # for the others to confirm a failure
GRACE_SECONDS = 3.0  # for a process that is told of a failure to fail by itself, in its own words
_FAILURE, _HEARD = "r1jax/failure", "r1jax/heard"

_client: Any = None
_index, _count = 0, 1
_names: list[str] = []  # of all processes, once they are known
_ending = threading.Event()  # this process ends, whether it failed or not


def listen(client: Any, index: int, count: int) -> None:
    """Starts the thread that looks for failures of the other processes. client: of jax's coordination service."""
    global _client, _index, _count
    _client, _index, _count = client, index, count
    thread = threading.Thread(target=_watch, name="failures", daemon=True)

    def finish() -> None:  # before jax closes the connection; a thread in its code would crash the end of Python
        _ending.set()
        thread.join(CONFIRM_SECONDS)

    atexit.register(finish)
    thread.start()


def set_names(names: list[str]) -> None:
    """Sets the names of all processes for messages."""
    _names[:] = names


def describe_process(index: int) -> str:
    """A process in words: `process 2 of 4 (host)`."""
    name = f" ({_names[index]})" if index < len(_names) else ""
    return f"process {index + 1} of {_count}{name}"


def is_alone() -> bool:
    """Whether this process has no others to tell."""
    return _client is None


def tell(code: int, cause: str) -> list[int]:
    """Tells the others that this process ends, with which exit code and why, and waits until they know.

    Returns the indices of processes that did not confirm: they are dead. Without others: [].
    """
    if _client is None:
        return []
    _ending.set()
    value = json.dumps({"index": _index, "code": code, "cause": cause})
    with contextlib.suppress(Exception):  # another process was first, or the first process is gone
        _client.key_value_set(_FAILURE, value)
    _confirm()
    end, missing = time.monotonic() + CONFIRM_SECONDS, set(range(_count)) - {_index}
    while missing and time.monotonic() < end:
        try:
            missing -= {int(key.rpartition("/")[2]) for key, _ in _client.key_value_dir_get(_HEARD)}
        except Exception:  # the store is gone, and with it the first process
            return [0]
        if missing:
            time.sleep(0.1)
    return sorted(missing)


def leave(code: int, cause: str) -> None:
    """Tells the others and ends this process with the exit code; returns if there are no others.

    Without jax's own farewell, which waits for all processes.
    """
    if _client is not None:
        tell(code, cause)
        _end(code)


def leave_by_error(error: Exception) -> None:
    """Ends this process for an error that is no mistake of the user: with its traceback and code 1, or with one line
    and the code LOST if the error came from a process that died. Returns if there are no others.
    """
    if _client is None:
        return
    words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    missing = tell(1, words)
    if missing and _is_of_library(error):
        dead = " and ".join(map(describe_process, missing))
        print(f"error: {dead} died or lost its connection; repeat the command ({words})", file=sys.stderr)
        _end(LOST)
    traceback.print_exception(error)
    _end(1)


def _is_of_library(error: Exception) -> bool:
    """Whether jax raised the error, as it does where a collective loses a process (under several types)."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(os.path.dirname(sys.modules["jax"].__file__ or "jax"))


def _watch() -> None:
    """Looks for a failure of another process, and ends this one for it."""
    while not _ending.wait(max(1.0, _count / 200)):  # at most some hundred requests a second to the store
        try:
            told = json.loads(_client.key_value_try_get(_FAILURE))
        except Exception as error:
            if "NOT_FOUND" in str(error) or _ending.is_set():
                continue
            if _index:
                print(f"error: {describe_process(0)} died or lost its connection; repeat the command", file=sys.stderr)
                _end(LOST)
            return
        if told["index"] != _index:
            _follow(told)
        return


def _follow(told: dict[str, Any]) -> None:
    """Ends this process for the failure of another, unless it ends by itself."""
    if told["code"] != STALLED and _ending.wait(GRACE_SECONDS):
        return
    _ending.set()
    print(f"error: {describe_process(told['index'])} ended: {told['cause']}", file=sys.stderr)
    if told["code"] == STALLED:
        faulthandler.dump_traceback(all_threads=True)
    sys.stderr.flush()
    _confirm()
    _end(told["code"])


def _confirm() -> None:
    with contextlib.suppress(Exception):
        _client.key_value_set(f"{_HEARD}/{_index}", "", allow_overwrite=True)


def _end(code: int) -> None:
    """Ends the process at once; the first process waits a moment, as the others need its store until they end."""
    if _index == 0:
        time.sleep(1.0)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
