"""Header of a GGUF file: its key-value pairs, and where each tensor lies.

Parsed here and not by the gguf package, whose reader takes seconds for a vocabulary of 50 thousand; its table of block
sizes is used. Every number is checked before it is used. Left out: files in parts or from big-endian machines.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from r1jax.core.errors import UserError

GGUF_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
GGUF_STRING, GGUF_ARRAY = 8, 9
GGUF_DTYPES: dict[gguf.GGMLQuantizationType, np.dtype] = {
    gguf.GGMLQuantizationType.F32: np.dtype(np.float32),
    gguf.GGMLQuantizationType.F16: np.dtype(np.float16),
    gguf.GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}
ITEM_LIMIT = 10_000_000  # items of all arrays in a GGUF header; the largest vocabularies have 0.3 million tokens
DEPTH_LIMIT, DIMENSION_LIMIT = 4, 8  # nesting of arrays in a GGUF header; dimensions of a tensor


@dataclass(frozen=True)
class Entry:
    """Location and encoding of one tensor. `quantization` is set for a GGUF file's quantized blocks."""

    file: Path
    start: int  # bytes from the beginning of the file
    length: int  # bytes
    shape: tuple[int, ...]
    dtype: np.dtype
    quantization: gguf.GGMLQuantizationType | None = None


class _Cursor:
    """Sequential reader of GGUF values from mapped bytes."""

    def __init__(self, data: memoryview):
        self.data, self.position, self.items = data, 0, 0

    def scalar(self, form: str) -> Any:
        value = struct.unpack_from(form, self.data, self.position)[0]
        self.position += struct.calcsize(form)
        return value

    def string(self) -> str:
        length = self.scalar("<Q")
        raw = bytes(self.data[self.position : self.position + length])
        if len(raw) < length:
            raise EOFError
        self.position += length
        return raw.decode("utf-8")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == GGUF_STRING:
            return self.string()
        if kind != GGUF_ARRAY:
            return self.scalar(GGUF_SCALARS[kind])
        item_kind, count = self.scalar("<I"), self.scalar("<Q")
        if count > len(self.data):  # every item takes at least one byte
            raise EOFError
        self.items += count
        if self.items > ITEM_LIMIT or depth > DEPTH_LIMIT:
            raise ValueError(f"arrays of more than {ITEM_LIMIT} items, or nested more than {DEPTH_LIMIT} times")
        if item_kind not in GGUF_SCALARS:
            return [self.value(item_kind, depth + 1) for _ in range(count)]
        form = GGUF_SCALARS[item_kind]
        values = list(struct.unpack_from(f"<{count}{form[1]}", self.data, self.position))
        self.position += struct.calcsize(form) * count
        return values


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """The key-value pairs and the tensors of a GGUF file. Raises UserError, naming the file, for anything else."""
    file = path
    size = file.stat().st_size
    data = np.memmap(file, mode="r", dtype=np.uint8) if size >= 24 else np.empty(0, np.uint8)
    if data[:4].tobytes() != b"GGUF":
        raise UserError(f"{file}: not a GGUF file")
    cursor = _Cursor(data.data)
    cursor.position = 4
    version = cursor.scalar("<I")
    if version not in (2, 3):
        raise UserError(f"{file}: GGUF version {version} is not supported (2 and 3 on little-endian machines are)")
    try:
        metadata, entries = _parse_gguf(file, cursor)
    except (struct.error, EOFError):
        raise UserError(f"{file}: cut off in its header ({size} bytes); download it again") from None
    except (KeyError, ValueError, MemoryError, OverflowError) as error:
        raise UserError(f"{file}: header of GGUF is broken ({type(error).__name__}: {error})") from None
    if metadata.get("split.count", 1) not in (0, 1):
        raise UserError(f"{file}: one of {metadata['split.count']} parts; join them first (llama-gguf-split --merge)")
    check_ranges(file, size, entries)
    return metadata, entries


def _parse_gguf(file: Path, cursor: _Cursor) -> tuple[dict[str, Any], dict[str, Entry]]:
    tensors, pairs = cursor.scalar("<Q"), cursor.scalar("<Q")
    metadata = {}
    for _ in range(pairs):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("<I"))
    infos = []
    for _ in range(tensors):
        name = cursor.string()
        if (rank := cursor.scalar("<I")) > DIMENSION_LIMIT:
            raise ValueError(f"tensor {name!r} of {rank} dimensions")
        dimensions = [cursor.scalar("<Q") for _ in range(rank)]
        infos.append((name, tuple(reversed(dimensions)), cursor.scalar("<I"), cursor.scalar("<Q")))
    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        raise ValueError(f"general.alignment must be a whole number from 1 to {1 << 20}, got {str(alignment)[:40]!r}")
    data_start = -(-cursor.position // alignment) * alignment
    return metadata, {name: _gguf_entry(file, name, shape, kind, data_start + at) for name, shape, kind, at in infos}


def _gguf_entry(file: Path, name: str, shape: tuple[int, ...], kind: int, start: int) -> Entry:
    try:
        quantization = gguf.GGMLQuantizationType(kind)
    except ValueError:
        raise UserError(f"{file}: tensor {name!r} is stored in GGML type {kind}, which is not known here") from None
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
    if (shape[-1] if shape else 1) % block_size:
        raise ValueError(f"tensor {name!r}: rows of {shape[-1] if shape else 1} are not whole blocks of {block_size}")
    length = math.prod(shape) // block_size * block_bytes
    plain = GGUF_DTYPES.get(quantization)
    return Entry(file, start, length, shape, plain or np.dtype(np.float32), None if plain else quantization)


def check_ranges(file: Path, size: int, entries: Mapping[str, Entry]) -> None:
    """Raises UserError if a tensor ends after its file, of `size` bytes."""
    for name, entry in entries.items():
        if entry.start + entry.length > size:
            raise UserError(
                f"{file}: cut off: tensor {name!r} ends at byte {entry.start + entry.length}, the file at {size}; "
                "download it again"
            )
