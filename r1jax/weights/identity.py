"""Digest that identifies a MODEL by content, cheap enough to compute at every start.

It covers the name, the size and the bytes at both ends of each file; for a run's checkpoint its checksums. A model that
continues training, or a rewritten folder, has another digest, and a copy in another place (in a bucket, on the hub) has
the same.
"""

from __future__ import annotations

import hashlib
import pathlib

from r1jax.core.buckets.staging import list_files as list_all
from r1jax.core.buckets.staging import locate
from r1jax.core.checksums import list_files
from r1jax.core.tensors.ranges import File, find_file, is_served
from r1jax.core.tensors.tensor_reader import list_weights
from r1jax.weights.names import find_model
from r1jax.weights.pretrained import DESCRIPTION, find_step

_END = 1 << 20  # bytes read at each end of a file
_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".gguf")


def identify_model(path: str | pathlib.Path) -> str:
    """Digest of a MODEL, 16 hexadecimal digits. Raises UserError if there is no such model."""
    local = find_model(path)
    if (step := find_step(local)) is not None:
        place = locate(step)
        sums = sorted(name for name in list_all(place) if name.startswith("checksums.") and name.endswith(".json"))
        files = {name: step / name for name in (*list_files(place), *sums)}
        files[f"{DESCRIPTION}/config.json"] = step.parents[1] / DESCRIPTION / "config.json"
    elif local.is_file():
        files = {"": local}
    else:
        here = {file.name: file for file in local.iterdir() if file.suffix in _SUFFIXES}
        files = {**here, **{file.name: file for file in list_weights(local)}} if is_served(local) else here
        files = dict(sorted(files.items()))
    digest = hashlib.sha256()
    for name, path in files.items():
        if (file := find_file(path)) is not None:
            digest.update(f"{name} {file.size}\n".encode())
            digest.update(_read_ends(file))
    return digest.hexdigest()[:16]


def _read_ends(file: File) -> bytes:
    first = file.read(0, min(_END, file.size)).tobytes()
    return first + file.read(max(len(first), file.size - _END), file.size).tobytes()
