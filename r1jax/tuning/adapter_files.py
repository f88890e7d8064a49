"""Files of adapters: named arrays in one safetensors file, whole once it is under its name."""

from __future__ import annotations

import os
import pathlib
import shutil
import uuid

import numpy as np

from r1jax.core.errors import UserError
from r1jax.core.tensors.tensor_reader import open_tensors
from r1jax.models.adapters.adapter_bank import AdapterBank
from r1jax.models.transformer import Params
from r1jax.weights.safetensors_writer import Spec, write_tensors

SUFFIX = ".safetensors"


def write_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> int:
    """Writes the arrays; returns the size in bytes. They are on disk when this returns."""
    draft = path.parent / f".draft-{uuid.uuid4().hex}"
    draft.mkdir(parents=True)
    try:
        specs = {name: Spec(array.shape, array.dtype) for name, array in arrays.items()}
        write_tensors(draft, specs, arrays.__getitem__, shard_bytes=1 << 62, stem="adapter")
        file = draft / f"adapter{SUFFIX}"
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(file, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return path.stat().st_size


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file. Raises UserError if it is not there or damaged."""
    if not path.is_file():
        raise UserError(f"{path} is missing: its checkpoint has expired or was deleted")
    tensors = open_tensors(path)
    return {name: tensors.read(name) for name in tensors.names}


def read_adapter(bank: AdapterBank, path: pathlib.Path) -> Params:
    """The adapter of a file, without its optimizer's moments."""
    arrays = read_arrays(path)
    return bank.restore(lambda name: arrays[".".join(("params", *name))])
