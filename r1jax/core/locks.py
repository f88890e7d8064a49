"""Lock on a workdir or an output file: one writer at a time, across processes and hosts.

One file holds two locks: an advisory lock of the system (flock), which is released when its process dies, and a lease
(host, process, time) that is renewed while the holder lives, for shared file systems without flock across hosts. A
lease of a dead process, or one not renewed for LEASE_SECONDS, is taken over and logged.

For a workdir in a bucket the lease is an object there too. It cannot be taken at once: of two runs that start within
the same second both may believe that they hold it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from r1jax.core.buckets import staging
from r1jax.core.buckets.staging import Place
from r1jax.core.errors import UserError

log = logging.getLogger(__name__)

LEASE_SECONDS, RENEW_SECONDS = 300.0, 60.0


@contextlib.contextmanager
def hold_lock(file: pathlib.Path, what: str) -> Iterator[None]:
    """Holds the lock `file` during the body; its folder is created if missing. `what` names the protected thing in
    messages.

    Raises UserError if another live process holds it, or if the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"{what} cannot be written: {error.strerror}") from None
    stop = threading.Event()
    try:
        _take(handle, what)
        lease = _read(handle)
        if lease:
            if lease.get("host") != socket.gethostname() and time.time() - lease.get("time", 0) < LEASE_SECONDS:
                raise UserError(f"{what} is in use by {_describe(lease)}; wait for it to end, or stop it")
            log.warning("%s: taking over the lock of %s, which no longer runs", what, _describe(lease))
        _write(handle)
        threading.Thread(target=_renew, args=(handle, stop), name="lease", daemon=True).start()
        try:
            place = staging.locate(file)
            with _hold_lease(place, what) if staging.is_address(place) else contextlib.nullcontext():
                yield
        finally:
            stop.set()
            with contextlib.suppress(OSError):
                os.ftruncate(handle, 0)
    finally:
        stop.set()
        os.close(handle)


@contextlib.contextmanager
def _hold_lease(place: Place, what: str) -> Iterator[None]:
    """Holds the lease at a place in a bucket. One that is not renewed while this waits for it is taken over."""
    stop, seen = threading.Event(), _read_lease(place)
    if seen:
        here = seen.get("host") == socket.gethostname()
        dead = here and not pathlib.Path(f"/proc/{seen.get('process')}").exists()
        wait = 0.0 if dead else max(0.0, LEASE_SECONDS - (time.time() - seen.get("time", 0)))
        if wait:
            log.warning("%s: waiting up to %.0f s for the lease of %s to end", what, wait, _describe(seen))
        end = time.monotonic() + wait
        while (now := _read_lease(place)) and time.monotonic() < end:
            if now != seen:
                raise UserError(f"{what} is in use by {_describe(now)}; wait for it to end, or stop it")
            time.sleep(min(5.0, wait))
        if now:
            log.warning("%s: taking over the lock of %s, which no longer runs", what, _describe(seen))

    def renew() -> None:
        while not stop.wait(RENEW_SECONDS):
            with contextlib.suppress(Exception):  # a network that is away for a moment
                place.write_text(_describe_self())

    place.write_text(_describe_self())
    threading.Thread(target=renew, name="lease in a bucket", daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        with contextlib.suppress(Exception):
            place.unlink()


def _read_lease(place: Place) -> dict[str, Any]:
    try:
        return _parse(place.read_text()) if place.exists() else {}
    except (OSError, ValueError):
        return {}


def _take(handle: int, what: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{what} is in use by {_describe(_read(handle))}; wait for it to end, or stop it") from None
    except OSError as error:  # a file system without flock: only the lease protects
        log.info("no advisory lock for %s (%s)", what, error.strerror)


def _read(handle: int) -> dict[str, Any]:
    return _parse(os.pread(handle, 4096, 0))


def _parse(text: str | bytes) -> dict[str, Any]:
    """The lease in a lock's file; {} for anything else."""
    try:
        lease = json.loads(text)
    except ValueError:
        return {}
    return lease if isinstance(lease, dict) and isinstance(lease.get("time"), int | float) else {}


def _write(handle: int) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, _describe_self().encode(), 0)


def _describe_self() -> str:
    return json.dumps({"host": socket.gethostname(), "process": os.getpid(), "time": round(time.time())})


def _renew(handle: int, stop: threading.Event) -> None:
    while not stop.wait(RENEW_SECONDS):
        with contextlib.suppress(OSError):
            _write(handle)


def _describe(lease: dict[str, Any]) -> str:
    if not lease:
        return "another process"
    return f"process {lease.get('process')} on {lease.get('host')}"
