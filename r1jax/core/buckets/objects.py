"""Objects of a bucket that are read as files: found by address, folder or pattern, opened for reading by ranges, and
identified without being read.

The client is gcsfs (extra `gcs`), through fsspec.
"""

from __future__ import annotations

import functools
import pathlib
import shutil
from typing import IO, Any

from r1jax.core.buckets.staging import SCHEME
from r1jax.core.errors import UserError
from r1jax.core.extras import check_installed

# Facts that change with the content of an object, in order of preference.
_MARKS = ("md5Hash", "crc32c", "etag", "generation", "updated")


def find_objects(address: str) -> list[str]:
    """Addresses, in order of name, of the objects that an address with `*` matches, below a folder, or the object."""
    system = _connect(address)
    if "*" in address:
        found = system.glob(address)
    elif system.isdir(address):
        found = system.find(address)
    else:
        found = [address] if system.exists(address) else []
    return sorted(SCHEME + name.removeprefix(SCHEME) for name in found)


def open_object(address: str) -> IO[bytes]:
    """A binary file that reads ranges of an object. Raises UserError if there is none."""
    try:
        return _connect(address).open(address, "rb")
    except FileNotFoundError:
        raise UserError(f"no such object: {address}") from None


def identify_object(address: str) -> tuple[Any, ...]:
    """(bytes, a mark that changes with the content) of an object. Raises UserError if there is none."""
    system = _connect(address)
    try:
        system.invalidate_cache()
        facts = system.info(address)
    except FileNotFoundError:
        raise UserError(f"no such object: {address}") from None
    return (facts["size"], *(str(facts[name]) for name in _MARKS if facts.get(name)))


def download_object(address: str, target: pathlib.Path) -> None:
    """Writes the content of an object to a file here."""
    with open_object(address) as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file, 1 << 22)


def _connect(address: str) -> Any:
    check_installed("gcsfs", "gcs", address)
    return _make_client()


@functools.cache
def _make_client() -> Any:
    import fsspec

    return fsspec.filesystem("gs")
