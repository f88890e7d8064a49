"""Workdirs in a bucket (`gs://bucket/path`): a local folder stands for them, and only checkpoints are written there
directly.

Objects of a bucket cannot be appended to or renamed at once. So a run writes its records (config, metrics, samples,
reports, events) into a local folder, which is uploaded before each checkpoint and at the end: a restart on another
machine finds every row up to its checkpoint. Checkpoints go to the bucket by orbax, which marks a complete one with a
file of its own in place of a rename. The local folder begins with what is in the bucket and is removed at the end.

The clients are those of etils (`epath`, through the package gcsfs) and tensorstore.
"""

from __future__ import annotations

import atexit
import logging
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from r1jax.core.errors import UserError
from r1jax.core.extras import check_installed

log = logging.getLogger(__name__)

SCHEME = "gs://"
DIRECT = ("checkpoints", "checkpoints.damaged")  # folders that are in the bucket alone
REACH_SECONDS = 45.0  # for the first answer of a bucket
LARGE = ("tensorboard", "profile", "compiled")  # folders that no start reads: never downloaded
WEIGHTS = (".safetensors", ".gguf")  # files that are read where they are (core/tensors/ranges.py): never downloaded

Place = Any  # an epath.Path of a bucket, or a pathlib.Path

_remotes: dict[pathlib.Path, Place] = {}  # local folder -> what it stands for
_sent: dict[pathlib.Path, tuple[int, int]] = {}  # local file -> size and time when it was uploaded


def is_address(name: object) -> bool:
    """Whether a text is the address of a folder in a bucket."""
    return str(name).startswith(SCHEME)


def stage(address: str) -> pathlib.Path:
    """Local folder that stands for the folder at `address`, with its records. Raises UserError without the package."""
    from etils import epath  # slow to import, and needed for buckets alone

    check_installed("gcsfs", "gcs", address)
    remote = epath.Path(address.rstrip("/"))
    known = [local for local, place in _remotes.items() if place == remote]
    if known:
        return known[0]
    base = pathlib.Path(tempfile.mkdtemp(prefix="r1jax-bucket-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    local = base / remote.name
    local.mkdir()
    _remotes[local] = remote
    _reach(remote, lambda: pull(local))
    return local


def _reach(remote: Place, act: Callable[[], None]) -> None:
    """Calls `act`. Raises UserError if the bucket does not answer; the clients would try for many minutes."""
    failures: list[BaseException] = []

    def attempt() -> None:
        try:
            next(iter(remote.iterdir()), None) if remote.is_dir() else None
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=attempt, name="first request to a bucket", daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    if thread.is_alive():
        raise UserError(f"{remote} does not answer within {REACH_SECONDS:.0f} s: check the network and the credentials")
    if failures:
        reason = " ".join(str(failures[0]).split())[:200] or type(failures[0]).__name__
        raise UserError(f"{remote} cannot be read ({reason}): check its name and the credentials") from failures[0]
    act()


def locate(path: pathlib.Path) -> Place:
    """The place that a local path stands for: in a bucket, or the path itself."""
    for local, remote in _remotes.items():
        if path == local or local in path.parents:
            return remote / path.relative_to(local).as_posix() if path != local else remote
        if path.parent == local.parent:  # beside a workdir: WORKDIR.earlier-N
            return remote.parent / path.name
    return path


def is_staged(path: pathlib.Path) -> bool:
    """Whether a local path stands for one in a bucket."""
    return locate(path) is not path


def pull(folder: pathlib.Path) -> None:
    """Downloads the records of a staged folder; does nothing for others."""
    if not is_staged(folder):
        return
    for file, name in _walk(locate(folder), skip=(*DIRECT, *LARGE)):
        if name.endswith(WEIGHTS):
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
        _sent[target] = _stamp(target)


def push(folder: pathlib.Path) -> None:
    """Uploads the records of a staged folder that changed; does nothing for others. One process of a run calls this."""
    if not is_staged(folder) or not folder.is_dir():
        return
    remote = locate(folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or name.parts[0] in DIRECT or name.name.startswith(".") or name.suffix == ".draft":
            continue
        if _sent.get(path) != (stamp := _stamp(path)):
            (remote / name.as_posix()).write_bytes(path.read_bytes())
            _sent[path] = stamp


def move(folder: pathlib.Path, names: Iterable[str], target: pathlib.Path) -> None:
    """Moves records of a folder to another one; of a staged folder in the bucket too: copied first, deleted then."""
    push(folder)
    for name in names:
        if (folder / name).exists():
            (folder / name).rename(target / name)
    push(target)
    home = locate(folder)
    for name in names:
        remove(home / name)


def move_remote(source: Place, target: Place) -> None:
    """Moves a folder within a bucket: file by file, as there is no rename."""
    for file, name in _walk(source):
        file.copy(target / name, overwrite=True)
    source.rmtree()


def remove(place: Place) -> None:
    """Deletes a file or a folder of a bucket, if it is there."""
    if place.is_dir():
        place.rmtree()
    elif place.exists():
        place.unlink()


def list_files(folder: Place) -> list[str]:
    """Relative paths of all files below a folder, here or in a bucket."""
    if isinstance(folder, pathlib.Path) and not is_address(folder):
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return [name for _, name in _walk(folder)]


def find_size(file: Place) -> int:
    """Bytes of a file, here or in a bucket."""
    found = file.stat()
    return int(found.length if hasattr(found, "length") else found.st_size)


def find_stamp(file: Place) -> tuple[int, float]:
    """Bytes of a file, here or in a bucket, and when it last changed."""
    found = file.stat()
    return find_size(file), float(found.mtime if hasattr(found, "mtime") else found.st_mtime_ns)


def _walk(folder: Place, skip: Iterable[str] = (), head: str = "") -> Iterator[tuple[Place, str]]:
    """All files below a folder of a bucket, with relative paths; `skip` names folders directly in it to leave out."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name in skip:
            continue
        if path.is_dir():
            yield from _walk(path, head=f"{head}{path.name}/")
        else:
            yield path, head + path.name


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
