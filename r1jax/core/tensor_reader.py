"""Reader of named tensors on disk, one at a time: a Hugging Face folder of safetensors (one file or shards), or a GGUF
file.

Only headers are parsed, into one table `name -> (file, byte range, encoding)`; bytes are memory-mapped when a tensor is
read. Opening 700 GB thus takes milliseconds, a host holds only the tensor it is placing, and an incomplete download is
found at opening, by name, not in the middle of a load. Files come from the internet: every number of a header is
checked before it is used, and shards must be in the folder of their index.

Both headers are parsed here and not by the formats' own packages: `gguf.GGUFReader` takes seconds for a vocabulary of
50 thousand, and safetensors' numpy interface has no float8. Dequantization uses the gguf package.

Left out: writing; pickled checkpoints (`pytorch_model.bin`); GGUF files in parts or from big-endian machines.

Formats: https://github.com/huggingface/safetensors#format and https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
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

SAFETENSORS_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
GGUF_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
GGUF_STRING, GGUF_ARRAY = 8, 9
GGUF_DTYPES: dict[gguf.GGMLQuantizationType, np.dtype] = {
    gguf.GGMLQuantizationType.F32: np.dtype(np.float32),
    gguf.GGMLQuantizationType.F16: np.dtype(np.float16),
    gguf.GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}
HEADER_LIMIT = 100_000_000  # bytes; the format's own bound, so that a corrupt header cannot request terabytes
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


class TensorFile:
    """Tensors of one model by name. Shapes are in numpy's order, `[out, in]` for a linear layer in both formats.

    `metadata` is a GGUF file's key-value pairs, or the metadata of a safetensors header (of the index, if there is
    one).
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, Any]):
        self.path = path
        self.metadata = dict(metadata)
        self._entries = dict(entries)
        self._maps: dict[Path, np.memmap] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All tensor names, in the order of the files."""
        return tuple(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> np.dtype:
        """The dtype that `read` returns: the stored one (bfloat16, float8 of ml_dtypes), float32 for quantized
        blocks.
        """
        return self._entry(name).dtype

    def read(self, name: str) -> np.ndarray:
        """One tensor. Unquantized tensors are read-only views of the mapped file, not copies."""
        entry = self._entry(name)
        if entry.file not in self._maps:
            self._maps[entry.file] = np.memmap(entry.file, mode="r", dtype=np.uint8)
        data = np.asarray(self._maps[entry.file][entry.start : entry.start + entry.length])
        if entry.quantization is None:
            return data.view(entry.dtype).reshape(entry.shape)
        rows = gguf.quant_shape_to_byte_shape(entry.shape, entry.quantization) if entry.shape else (entry.length,)
        try:
            return gguf.quants.dequantize(data.reshape(rows), entry.quantization).reshape(entry.shape)
        except NotImplementedError:
            raise UserError(
                f"{entry.file}: tensor {name!r} is stored as {entry.quantization.name}, "
                "which is not supported; use a GGUF file with another quantization"
            ) from None

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise UserError(f"{self.path}: no tensor {name!r} among {len(self._entries)}")
        return self._entries[name]


def open_tensors(path: str | Path) -> TensorFile:
    """Opens a Hugging Face folder, one `.safetensors` file or one `.gguf` file.

    Raises UserError, naming the file (and the tensor), for anything missing, truncated, or of another format.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such model file or folder: {path}")
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise UserError(f"{path}: neither a file nor a folder")
    if path.suffix == ".gguf":
        return _open_gguf(path)
    if path.suffix == ".safetensors":
        entries, metadata = _parse_safetensors(path)
        return TensorFile(path, entries, metadata)
    raise UserError(f"{path}: a model is a folder with safetensors or a .gguf file")


def unpermute_rope(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection [heads * H, ...] from GGUF's rotary order back to Hugging Face's.

    llama.cpp rotates neighbours (0,1), (2,3), ...; Hugging Face rotates halves (0,H/2), (1,H/2+1), .... The converter
    of Llama-like models therefore interleaves each head's two halves; this reverses it. Also for biases [heads * H].
    """
    if weight.shape[0] % (2 * heads):
        raise ValueError(f"{weight.shape[0]} rows cannot be {heads} heads of even width")
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _open_folder(folder: Path) -> TensorFile:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return _open_shards(index)
    single = folder / "model.safetensors"
    if not single.exists():
        raise UserError(f"{folder}: contains neither model.safetensors nor model.safetensors.index.json")
    entries, metadata = _parse_safetensors(single)
    return TensorFile(folder, entries, metadata)


def _open_shards(index: Path) -> TensorFile:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        weight_map: dict[str, str] = dict(content["weight_map"])
        metadata = dict(content.get("metadata") or {})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{index}: not an index of safetensors ({type(error).__name__}: {error})") from None
    shards: dict[str, dict[str, Entry]] = {}
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", ".."):
            raise UserError(f"{index}: a shard must be the name of a file beside the index, got {str(shard)[:80]!r}")
    for shard in sorted(set(weight_map.values())):
        if not (index.parent / shard).is_file():
            raise UserError(
                f"{index.parent / shard}: missing, though {index.name} names it; download the rest of the model"
            )
        shards[shard], _ = _parse_safetensors(index.parent / shard)
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise UserError(f"{index.parent / shard}: has no tensor {name!r}, though {index.name} says so")
    entries = {name: entry for shard in shards.values() for name, entry in shard.items() if name in weight_map}
    return TensorFile(index.parent, entries, metadata)


def _parse_safetensors(file: Path) -> tuple[dict[str, Entry], dict[str, Any]]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        header_length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else HEADER_LIMIT + 1
        if header_length > min(HEADER_LIMIT, size - 8):
            raise UserError(f"{file}: not a safetensors file, or cut off in its header ({size} bytes)")
        raw = stream.read(header_length)
    try:
        header = json.loads(raw)
        metadata = dict(header.pop("__metadata__", None) or {})
        entries = {name: _safetensors_entry(file, 8 + header_length, name, info) for name, info in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: header of safetensors is broken ({type(error).__name__}: {error})") from None
    _check_ranges(file, size, entries)
    return entries, metadata


def _safetensors_entry(file: Path, data_start: int, name: str, info: Mapping[str, Any]) -> Entry:
    if info["dtype"] not in SAFETENSORS_DTYPES:
        raise UserError(f"{file}: tensor {name!r} has the dtype {info['dtype']!r}, which is not known here")
    dtype, shape = SAFETENSORS_DTYPES[info["dtype"]], tuple(info["shape"])
    begin, end = info["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise ValueError(f"tensor {name!r}: shape and data_offsets must be whole numbers from 0 on")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise UserError(f"{file}: tensor {name!r} of shape {list(shape)} and {dtype} cannot be {end - begin} bytes")
    return Entry(file, data_start + begin, end - begin, shape, dtype)


def _check_ranges(file: Path, size: int, entries: Mapping[str, Entry]) -> None:
    for name, entry in entries.items():
        if entry.start + entry.length > size:
            raise UserError(
                f"{file}: cut off: tensor {name!r} ends at byte {entry.start + entry.length}, the file at {size}; "
                "download it again"
            )


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


def _open_gguf(file: Path) -> TensorFile:
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
    _check_ranges(file, size, entries)
    return TensorFile(file, entries, metadata)


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
