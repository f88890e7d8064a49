"""Byte ranges of files, wherever they are: on this host's disk or a shared folder, in a bucket, on a hub.

A model's folder stands for all of its files: small ones (configs, tokenizer, index) are in it, and weights may be
elsewhere. `find_file(path)` opens a file where it is. A folder that stands for one in a bucket is known to
core/buckets/staging.py; one of the hub's cache is made known by `serve_from_hub`.

Local files are mapped where a view is wanted and read by position where bytes are: a mapping of a network file system
fetches pages, not ranges.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from etils import epath

from r1jax.core.buckets import staging
from r1jax.core.errors import UserError

FORGOTTEN = (401, 403, 404, 410)  # answers of a storage host whose signed address is too old
ANSWER_SECONDS = 60  # that a server may be silent


class File(Protocol):
    """A file of `size` bytes; `is_remote` where each read is a request over the network."""

    size: int
    is_remote: bool

    def read(self, start: int, stop: int) -> np.ndarray:
        """The bytes from `start` to before `stop`, uint8. Raises UserError where they cannot be had."""
        ...


class LocalFile:
    """A file of a mounted file system."""

    is_remote = False

    def __init__(self, path: pathlib.Path):
        self.path, self.size = path, path.stat().st_size

    @functools.cached_property
    def mapped(self) -> np.ndarray:
        """The whole file as a read-only view."""
        return np.memmap(self.path, mode="r", dtype=np.uint8) if self.size else np.empty(0, np.uint8)

    def read(self, start: int, stop: int) -> np.ndarray:
        out = np.empty(stop - start, np.uint8)
        view, done = out.data, 0
        handle = os.open(self.path, os.O_RDONLY)
        try:
            while done < len(out):
                got = os.preadv(handle, [view[done:]], start + done)
                if not got:
                    raise UserError(f"{self.path}: cut off: it ends before byte {stop}; download it again")
                done += got
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error})") from None
        finally:
            os.close(handle)
        return out


class BucketFile:
    """An object of a bucket, by the client of etils' `epath` (gcsfs)."""

    is_remote = True

    def __init__(self, place: epath.Path):
        self.path = place
        self.size = int(_bucket_client().info(str(place))["size"])

    def read(self, start: int, stop: int) -> np.ndarray:
        if start == stop:
            return np.empty(0, np.uint8)
        try:
            data = _bucket_client().cat_file(str(self.path), start=start, end=stop)
        except Exception as error:  # gcsfs has retried; its errors have no common base
            raise UserError(f"{self.path}: cannot be read ({_one_line(error)})") from None
        return _check_length(np.frombuffer(data, np.uint8), stop - start, self.path)


class HubFile:
    """A file of a hub's repository at a commit, over HTTP. Redirects to a storage host are followed once a file; an
    address that has expired is asked for again.
    """

    is_remote = True

    def __init__(self, repository: str, commit: str, name: str):
        self.path = f"{repository}@{commit[:12]}/{name}"
        self._ask = functools.partial(_ask_hub, repository, commit, name)
        self._address, size = self._ask()
        if size is None:
            raise UserError(f"{self.path}: the hub does not tell its size; fetch it with `hf download {repository}`")
        self.size = size
        self._cure = f"fetch the model with `hf download {repository}` and start again"

    def read(self, start: int, stop: int) -> np.ndarray:
        if start == stop:
            return np.empty(0, np.uint8)
        response = self._get(start, stop)
        if response.status_code in FORGOTTEN:
            self._address, _ = self._ask()
            response = self._get(start, stop)
        if response.status_code == 200 and stop - start < self.size:
            raise UserError(f"{self.path}: the server does not serve byte ranges; {self._cure}")
        if response.status_code not in (200, 206):
            raise UserError(f"{self.path}: cannot be read (HTTP {response.status_code}); {self._cure}")
        return _check_length(np.frombuffer(response.content, np.uint8), stop - start, self.path)

    def _get(self, start: int, stop: int) -> Any:
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers, http_backoff

        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if urlsplit(self._address).netloc == urlsplit(constants.ENDPOINT).netloc:  # storage hosts get no token
            headers = {**build_hf_headers(), **headers}
        try:
            return http_backoff("GET", self._address, headers=headers, timeout=ANSWER_SECONDS)
        except Exception as error:  # that of the HTTP library of the hub's package, which has changed before
            raise UserError(f"{self.path}: cannot be read ({_one_line(error)})") from None


_served: dict[pathlib.Path, str] = {}  # folders of the hub's cache (snapshots/COMMIT) without weights -> repository


def serve_from_hub(folder: pathlib.Path, repository: str) -> None:
    """Lets `find_file` read what a folder of the hub's cache lacks from the hub, at the folder's commit."""
    _served[folder] = repository


def is_served(folder: pathlib.Path) -> bool:
    """Whether a folder's weights are read elsewhere: in a bucket or on the hub."""
    return folder in _served or staging.is_staged(folder)


def find_file(path: pathlib.Path) -> File | None:
    """The file that a path stands for; None if there is none here or where the path's folder is served from.

    Raises UserError if the hub or the bucket cannot be asked.
    """
    if path.is_file():
        return LocalFile(path)
    place = staging.locate(path)
    find: Callable[[], File]
    if place is not path:
        find = lambda: BucketFile(place)
    elif path.parent in _served:
        find = lambda: HubFile(_served[path.parent], path.parent.name, path.name)
    else:
        return None
    try:
        return find()
    except UserError:
        raise
    except Exception as error:  # the clients' errors have no common base
        if _says_absent(error):
            return None
        raise UserError(f"{path.name}: {_served.get(path.parent, place)} cannot be read ({_one_line(error)})") from None


@functools.cache
def _bucket_client() -> Any:
    import fsspec

    return fsspec.filesystem("gcs")


def _ask_hub(repository: str, commit: str, name: str) -> tuple[str, int | None]:
    """Address that a file's bytes are at, and its size."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    found = get_hf_file_metadata(hf_hub_url(repository, name, revision=commit), headers=build_hf_headers())
    return found.location, found.size


def _says_absent(error: Exception) -> bool:
    from huggingface_hub.errors import EntryNotFoundError

    return isinstance(error, FileNotFoundError | EntryNotFoundError)


def _check_length(data: np.ndarray, length: int, path: Any) -> np.ndarray:
    if len(data) != length:
        raise UserError(f"{path}: cut off: {len(data)} bytes came of {length} that were asked for")
    return data


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
