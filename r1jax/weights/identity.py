"""Digest that identifies a MODEL by content, cheap enough to compute at every start.

It covers the name, the size and the bytes at both ends of each file; for a run's checkpoint its checksums. A model that
continues training, or a rewritten folder, has another digest, and a copy in another place has the same.
"""

from __future__ import annotations

import hashlib
import pathlib

from r1jax.core.checksums import list_files
from r1jax.weights.names import find_model
from r1jax.weights.pretrained import DESCRIPTION, find_step

_END = 1 << 20  # bytes read at each end of a file
_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".gguf")


def identify_model(path: str | pathlib.Path) -> str:
    """Digest of a MODEL, 16 hexadecimal digits. Raises UserError if there is no such model."""
    local = find_model(path)
    if (step := find_step(local)) is not None:
        sums = sorted(file.relative_to(step).as_posix() for file in step.glob("checksums.*.json"))
        files = {name: step / name for name in (*list_files(step), *sums)}
        files[f"{DESCRIPTION}/config.json"] = step.parents[1] / DESCRIPTION / "config.json"
    elif local.is_file():
        files = {"": local}
    else:
        files = {file.name: file for file in sorted(local.iterdir()) if file.suffix in _SUFFIXES}
    digest = hashlib.sha256()
    for name, file in files.items():
        if file.is_file():
            digest.update(f"{name} {file.stat().st_size}\n".encode())
            digest.update(_read_ends(file))
    return digest.hexdigest()[:16]


def _read_ends(file: pathlib.Path) -> bytes:
    with open(file, "rb") as stream:
        first = stream.read(_END)
        stream.seek(max(len(first), file.stat().st_size - _END))
        return first + stream.read(_END)
