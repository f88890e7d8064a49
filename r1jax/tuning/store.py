"""Sessions, models, samplers, checkpoints and requests of the service, which it must not lose, in one SQLite file.

A request is recorded before it is acknowledged and found again by its target and number, so that a client that repeats
one gets the first one's answer, and a server that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from r1jax.core.errors import UserError

FILE = "service.sqlite"
_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS things (
  kind TEXT, id TEXT, parent TEXT, created REAL, body TEXT, PRIMARY KEY (kind, id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_parent ON things (kind, parent, created);
CREATE TABLE IF NOT EXISTS requests (
  id TEXT PRIMARY KEY, target TEXT, number INTEGER, kind TEXT, body BLOB, status TEXT, result BLOB, fetched REAL);
CREATE INDEX IF NOT EXISTS by_target ON requests (target, number);
CREATE INDEX IF NOT EXISTS by_status ON requests (status) WHERE status = 'pending';
"""
KEPT_SECONDS = 600.0  # results after they were fetched, for clients that ask again


class Request(NamedTuple):
    """A recorded request. status: pending, done or failed. body: None once it is not needed any more."""

    id: str
    target: str
    number: int
    kind: str
    body: bytes | None
    status: str
    result: bytes | None


class Thing(NamedTuple):
    """A session, model, sampler or checkpoint. created: seconds since 1970."""

    id: str
    parent: str
    created: float
    body: dict[str, Any]


class Store:
    """The file in `workdir`, for all threads of one process. Raises UserError if another process has it open."""

    def __init__(self, workdir: pathlib.Path):
        workdir.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._depth = 0
        try:
            self._base = sqlite3.connect(workdir / FILE, check_same_thread=False, isolation_level=None, timeout=1)
            self._base.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._base.executescript(_SCHEMA)
            self._base.execute("BEGIN IMMEDIATE")
            self._base.execute("COMMIT")
        except sqlite3.Error as error:
            raise UserError(
                f"cannot use {workdir / FILE} ({error}): another server may use it, choose another --workdir"
            ) from None

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._base.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is recorded together or not at all."""
        with self._lock:
            self._depth += 1
            try:
                if self._depth == 1:
                    self._base.execute("BEGIN IMMEDIATE")
                yield
                if self._depth == 1:
                    self._base.execute("COMMIT")
            except BaseException:
                if self._depth == 1 and self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    def put(self, kind: str, id: str, body: dict[str, Any], *, parent: str = "") -> None:
        """Records a thing, or replaces its body."""
        values = kind, id, parent, time.time(), json.dumps(body)
        self._do("INSERT INTO things VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET body = excluded.body", *values)

    def get(self, kind: str, id: str) -> Thing | None:
        """A thing, or None."""
        found = self._do("SELECT id, parent, created, body FROM things WHERE kind = ? AND id = ?", kind, id)
        return _thing(found[0]) if found else None

    def things(self, kind: str, parent: str | None = None) -> list[Thing]:
        """All things of a kind, of one parent if it is given, newest first."""
        where, values = ("", ()) if parent is None else (" AND parent = ?", (parent,))
        order = " ORDER BY created DESC, id"
        found = self._do(f"SELECT id, parent, created, body FROM things WHERE kind = ?{where}{order}", kind, *values)
        return [_thing(row) for row in found]

    def delete(self, kind: str, id: str) -> None:
        """Forgets a thing."""
        self._do("DELETE FROM things WHERE kind = ? AND id = ?", kind, id)

    def add(self, id: str, target: str, number: int, kind: str, body: bytes) -> bool:
        """Records a request; whether it is new."""
        with self.transaction():
            if self._do("SELECT 1 FROM requests WHERE id = ?", id):
                return False
            values = id, target, number, kind, body
            self._do("INSERT INTO requests VALUES (?, ?, ?, ?, ?, 'pending', NULL, NULL)", *values)
        return True

    def finish(self, id: str, status: str, result: bytes) -> None:
        """Records the result of a request; status: done or failed."""
        self._do("UPDATE requests SET status = ?, result = ? WHERE id = ?", status, result, id)

    def request(self, id: str) -> Request | None:
        """A request, or None."""
        found = self._do("SELECT id, target, number, kind, body, status, result FROM requests WHERE id = ?", id)
        return Request(*found[0]) if found else None

    def requests(self, target: str | None = None, *, after: int = -1, status: str = "") -> list[Request]:
        """Requests with numbers above `after`, in order, of one target or one status if they are given."""
        where, values = ["number > ?"], [after]
        for column, value in {"target": target, "status": status or None}.items():
            if value is not None:
                where, values = [*where, f"{column} = ?"], [*values, value]  # type: ignore[list-item]
        columns = "id, target, number, kind, body, status, result"
        query = f"SELECT {columns} FROM requests WHERE {' AND '.join(where)} ORDER BY number, rowid"
        return [Request(*row) for row in self._do(query, *values)]

    def note_fetched(self, id: str) -> None:
        """Notes that a client has got a result."""
        self._do("UPDATE requests SET fetched = ? WHERE id = ? AND fetched IS NULL", time.time(), id)

    def forget_bodies(self, target: str, upto: int) -> None:
        """Drops the bodies of requests of which the state of the target holds the effect, and old results."""
        self._do(
            "UPDATE requests SET body = NULL WHERE target = ? AND number <= ? AND status != 'pending'", target, upto
        )
        self._do(
            "DELETE FROM requests WHERE target = ? AND number < ? AND fetched < ?",
            target,
            upto,
            time.time() - KEPT_SECONDS,
        )

    def last_number(self, target: str) -> int:
        """The largest number of a finished request of a target; -1 if there is none."""
        query = "SELECT MAX(number) FROM requests WHERE target = ? AND status != 'pending'"
        (number,) = self._do(query, target)[0]
        return -1 if number is None else number

    def _do(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._base.execute(query, values).fetchall()


def _thing(row: tuple) -> Thing:
    return Thing(row[0], row[1], row[2], json.loads(row[3]))
