"""Preparation of a source: its examples encoded once, on all cores, into shards that every later start reads.

A set is a folder named by its key (data/prepared/set_key.py), with plan.json (the pieces of the source) and a shard a
piece. Workers (data/prepared/shard_worker.py) do the shards that are not there; killed at any moment, a preparation
goes on at the shards where it was, and several of them share the work.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import r1jax
from r1jax.core import console
from r1jax.core.errors import UserError
from r1jax.core.startup.program_cache import find_user_cache
from r1jax.core.watchdog import beat
from r1jax.data.corpus import CorpusConfig, SourceConfig
from r1jax.data.files import watch
from r1jax.data.formats import Piece, identify_file, split_file
from r1jax.data.prepared.set_key import make_key, write_shared
from r1jax.data.prepared.shard_worker import MISTAKEN, Job, send_job
from r1jax.data.prepared.shards import name_index
from r1jax.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

PLAN = "plan.json"
PIECE_BYTES = 16 << 20  # of a source, a shard at most
_LEAST_PIECE, _PIECES = 1 << 20, 128  # pieces are smaller where a set would have fewer: many cores end together
FOLDER = "R1JAX_PREPARED"  # environment: folder of prepared sets, or off


def find_folder() -> pathlib.Path | None:
    """The folder of prepared sets: $R1JAX_PREPARED, or ~/.cache/r1jax/prepared; None if that is `off`."""
    named = os.environ.get(FOLDER)
    return None if named == "off" else pathlib.Path(named) if named else find_user_cache() / "prepared"


def find_set(files: Sequence[str], source: SourceConfig, config: CorpusConfig, tokenizer: Tokenizer) -> pathlib.Path:
    """The folder that the set of these files has, or would have."""
    folder = find_folder()
    if folder is None:
        raise UserError(f"{FOLDER}=off leaves no folder for prepared sets")
    return folder / make_key(files, source, config, tokenizer, choose_piece_bytes(files), folder / "contents")


def choose_piece_bytes(files: Sequence[str]) -> int:
    """Bytes of a source that make a shard, by the size of its files."""
    size = sum(identify_file(file)[0] for file in files)
    return min(PIECE_BYTES, max(_LEAST_PIECE, size // _PIECES))


def read_plan(folder: pathlib.Path) -> list[Piece]:
    """The pieces of a set; [] if it is not planned yet."""
    try:
        return [Piece(*piece) for piece in json.loads((folder / PLAN).read_text("utf-8"))["pieces"]]
    except FileNotFoundError:
        return []


def list_missing(folder: pathlib.Path, pieces: Sequence[Piece]) -> list[int]:
    """Numbers of the shards that are not whole."""
    there = {name for name in os.listdir(folder) if name.endswith(".index")}
    return [number for number in range(len(pieces)) if name_index(number) not in there]


def is_whole(folder: pathlib.Path) -> bool:
    """Whether a set is complete."""
    pieces = read_plan(folder)
    return bool(pieces) and not list_missing(folder, pieces)


def prepare_set(
    folder: pathlib.Path,
    files: Sequence[str],
    source: SourceConfig,
    config: CorpusConfig,
    tokenizer: Tokenizer,
    *,
    name: str,
    key: str,
) -> dict[str, Any]:
    """Makes the shards of a set that are missing, by workers on all cores. Returns the tokens that they encoded here,
    and the seconds.

    Raises UserError for a malformed row (unless config.on_error is "skip"), and for a file that changes meanwhile.
    """
    begin = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    watched = list(zip(files, map(identify_file, files), strict=True))
    pieces = read_plan(folder)
    if not pieces:
        size = choose_piece_bytes(files)
        pieces = [piece for file in watch(files, key) for piece in split_file(file, size)]
        write_shared(folder / PLAN, json.dumps({"name": name, "pieces": pieces}) + "\n")
    # A set is found by content, so the files may be copies of those that it was planned with.
    names = dict(zip(dict.fromkeys(piece.file for piece in pieces), files, strict=True))
    pieces = [piece._replace(file=names[piece.file]) for piece in pieces]
    job = Job(folder, pieces, source, config, tokenizer)
    tokens = _work(job, name)
    for file, stamp in watched:
        if identify_file(file) != stamp:
            shutil.rmtree(folder, ignore_errors=True)
            raise UserError(f"{file} changed while it was read ({key}): start again after it is written")
    return {"tokens": tokens, "seconds": time.monotonic() - begin}


def _work(job: Job, name: str) -> int:
    """Starts workers, and more when they end, until all shards are there; the tokens that they encoded."""
    said: queue.Queue[dict[str, Any]] = queue.Queue()
    tokens, begin, last_start = 0, time.monotonic(), 0.0
    folder, total = job.folder, len(job.pieces)
    missing = list_missing(folder, job.pieces)
    with contextlib.ExitStack() as stack:
        workers: list[subprocess.Popen] = []
        stack.callback(lambda: _stop(workers))
        progress = stack.enter_context(
            console.Progress(total, start=total - len(missing), title=f"preparing {name}, shard", every=5.0)
        )
        while missing:
            if not any(worker.poll() is None for worker in workers) and time.monotonic() - last_start > 1:
                last_start = time.monotonic()
                if not _has_mistake(workers):  # its message is on its way
                    workers[:] = [_start(job, said, slot) for slot in _take_slots(folder, len(missing))]
            for word in _take_words(said, 0.1):
                if "mistake" in word:
                    raise UserError(word["mistake"])
                tokens += word["tokens"]
            beat()
            left = list_missing(folder, job.pieces)
            if len(left) != len(missing) or not left:
                rate = tokens / (time.monotonic() - begin)
                progress.update(total - len(left), {"rollout/tokens_per_second": rate})
            missing = left
    while not said.empty():
        tokens += said.get().get("tokens", 0)
    return tokens


def _take_words(said: queue.Queue[dict[str, Any]], seconds: float) -> Iterator[dict[str, Any]]:
    """Words of the workers by now, after at most so many seconds for the first. Many workers never cease to speak."""
    with contextlib.suppress(queue.Empty):
        yield said.get(timeout=seconds)
        for _ in range(said.qsize()):
            yield said.get_nowait()


def _take_slots(folder: pathlib.Path, most: int) -> Iterator[int]:
    """Descriptors of free places for workers on this host, as many as it has cores; each is held until the last process
    that has it ends.
    """
    for slot in range(min(os.cpu_count() or 1, most)):
        handle = os.open(folder / f"{socket.gethostname()}.{slot}.slot", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield handle
        except BlockingIOError:
            continue
        finally:
            os.close(handle)


def _start(job: Job, said: queue.Queue[dict[str, Any]], slot: int) -> subprocess.Popen:
    """A worker that holds a slot."""
    root = str(pathlib.Path(r1jax.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    worker = subprocess.Popen(
        [sys.executable, "-m", "r1jax.data.prepared.shard_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
        pass_fds=(slot,),
        start_new_session=True,  # Ctrl-C is for the process that started it
    )
    assert worker.stdin and worker.stdout
    output = worker.stdout

    def listen() -> None:
        with output:
            for line in output:
                with contextlib.suppress(ValueError):
                    said.put(json.loads(line))

    threading.Thread(target=listen, daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        send_job(job, worker.stdin)
    return worker


def _has_mistake(workers: Sequence[subprocess.Popen]) -> bool:
    """Whether a worker ended by a user's mistake. Raises RuntimeError for one that failed otherwise, unless killed."""
    codes = {worker.returncode for worker in workers}
    if odd := codes - {0, MISTAKEN, -9, -15}:
        raise RuntimeError(f"a worker that encodes data ended with code {odd.pop()}; its message is above")
    return MISTAKEN in codes


def _stop(workers: Sequence[subprocess.Popen]) -> None:
    for worker in workers:
        if worker.stdin:
            with contextlib.suppress(OSError):
                worker.stdin.close()
        worker.kill()
        worker.wait()
