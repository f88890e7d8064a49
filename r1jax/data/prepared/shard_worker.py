"""A process that encodes shards of a prepared set until none is left: `python -m r1jax.data.prepared.shard_worker`.

It receives a `Job` (pickled, after its length) on stdin, and ends when stdin is closed: with the process that started
it, however that ends. A shard is claimed by a lock, so that any number of workers, on any number of hosts that share
the folder, divide a set among them. Says on stdout, in lines of JSON, how many tokens it has encoded, and a mistake
that ends it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import pickle
import struct
import sys
import threading
import time
from collections.abc import Callable

from r1jax.core.errors import UserError
from r1jax.core.locks import hold_lock
from r1jax.data.corpus import CorpusConfig, SourceConfig, make_encoder
from r1jax.data.formats import Piece
from r1jax.data.prepared.shards import name_shard, write_shard
from r1jax.text.tokenizer import Tokenizer

MISTAKEN = 2  # exit code: a user's mistake, which is said on stdout


@dataclasses.dataclass(frozen=True)
class Job:
    """The work on one set."""

    folder: pathlib.Path
    pieces: list[Piece]
    source: SourceConfig
    config: CorpusConfig
    tokenizer: Tokenizer


def send_job(job: Job, stream: object) -> None:
    """Writes a job as `main` reads it."""
    data = pickle.dumps(job)
    stream.write(struct.pack("<q", len(data)) + data)  # type: ignore[attr-defined]
    stream.flush()  # type: ignore[attr-defined]


def main() -> int:
    """Works on the job of stdin; 0 if no shard is left to claim, 2 after a mistake."""
    stream = sys.stdin.buffer
    job: Job = pickle.loads(stream.read(struct.unpack("<q", stream.read(8))[0]))
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    voice = _Voice()
    try:
        work(job, voice.tell)
        voice.flush()
    except UserError as error:
        print(json.dumps({"mistake": str(error)}), flush=True)
        return MISTAKEN
    return 0


def _end_with_stdin() -> None:
    """Ends this process when stdin is closed. Reads the descriptor itself: a reader's lock would be held at the end."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def work(job: Job, tell: Callable[[int], None] = lambda _: None) -> int:
    """Encodes every shard of the job that nobody else does; returns the tokens, and tells those of each row."""
    encode, tokens = make_encoder(job.source, job.tokenizer), 0

    def count(more: int) -> None:
        nonlocal tokens
        tokens += more
        tell(more)

    for number, piece in enumerate(job.pieces):
        index = name_shard(job.folder, number)[1]
        if index.exists():
            continue
        lock, claim = index.with_suffix(".lock"), contextlib.ExitStack()
        try:
            claim.enter_context(hold_lock(lock, f"shard {number}"))
        except UserError:  # another worker has it
            continue
        with claim:
            if not index.exists():
                write_shard(job.folder, number, piece, job.source, job.config, encode, count)
        lock.unlink(missing_ok=True)
    return tokens


class _Voice:
    """Says the tokens that were encoded, at most twice a second."""

    def __init__(self) -> None:
        self._told, self._tokens = time.monotonic(), 0

    def tell(self, more: int) -> None:
        """Counts, and says so if it is time."""
        self._tokens += more
        if time.monotonic() - self._told > 0.5:
            self.flush()

    def flush(self) -> None:
        """Says what was not said."""
        print(json.dumps({"tokens": self._tokens}), flush=True)
        self._told, self._tokens = time.monotonic(), 0


if __name__ == "__main__":
    sys.exit(main())
