"""Checksums of a checkpoint's files: written when it is complete, verified before it is restored.

A damaged array file may still decode, into values that ruin a run without an error. Each process sums every n-th file
of the folder into its own checksum file, so that a pod shares the reading. CRC-32 detects accidents, not malice. A
checkpoint without checksums passes: it is an old one, or its process was killed just after completion.
"""

from __future__ import annotations

import json
import zlib
from concurrent.futures import ThreadPoolExecutor

from r1jax.core.atomic_file import replace_file
from r1jax.core.buckets import staging
from r1jax.core.buckets.staging import Place

PREFIX = "checksums"
_BLOCK = 1 << 22  # bytes read at once


def write_checksums(folder: Place, *, index: int = 0, count: int = 1) -> None:
    """Writes `checksums.INDEX.json` into a complete checkpoint: size and CRC-32 of every `count`-th file."""
    names = list_files(folder)[index::count]
    entries = dict(zip(names, _measure(folder, names), strict=True))
    file, text = folder / f"{PREFIX}.{index}.json", json.dumps(entries)
    if staging.is_address(folder):
        file.write_text(text)  # an object of a bucket is there once it is whole
    else:
        replace_file(file, text)


def has_checksums(folder: Place, *, index: int = 0) -> bool:
    """Whether the process with this index has written its checksums."""
    return (folder / f"{PREFIX}.{index}.json").is_file()


def find_damage(folder: Place, *, index: int = 0, count: int = 1, sizes: bool = False) -> str:
    """The first file that differs from its checksum, and how; "" if there is none.

    Reads every `count`-th listed file, starting with the `index`-th. sizes: only sizes are compared.
    """
    entries: dict[str, list[int]] = {}
    for sums in sorted(folder.glob(f"{PREFIX}.*.json")):
        try:
            entries |= json.loads(sums.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return f"{sums.name} cannot be read"
    names = sorted(entries)[index::count]
    for name in names:
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if (size := staging.find_size(file)) != entries[name][0]:
            return f"{name} has {size} bytes instead of {entries[name][0]}"
    for name, found in [] if sizes else zip(names, _measure(folder, names), strict=True):
        if list(found) != list(entries[name]):
            return f"{name} has a wrong checksum"
    return ""


def describe_files(folder: Place) -> list[tuple[str, int, float]]:
    """Relative path, size and time of change of every file in a checkpoint's folder."""
    names = sorted(staging.list_files(folder))
    return [(name, *staging.find_stamp(folder / name)) for name in names]


def list_files(folder: Place) -> list[str]:
    """Relative paths of all files in a checkpoint's folder except checksums, sorted."""
    names = staging.list_files(folder)
    return sorted(name for name in names if not name.rpartition("/")[2].lstrip(".").startswith(f"{PREFIX}."))


def _measure(folder: Place, names: list[str]) -> list[tuple[int, int]]:
    """Size and CRC-32 of each file; several files are read in parallel, because CRC-32 releases Python's lock."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(lambda name: _sum(folder / name), names))


def _sum(file: Place) -> tuple[int, int]:
    size = total = 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            size, total = size + len(block), zlib.crc32(block, total)
    return size, total
