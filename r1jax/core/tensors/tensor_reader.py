"""Reader of named tensors: a Hugging Face folder of safetensors (one file or shards), or a GGUF file.

Only headers are parsed, into one table `name -> (file, byte range, encoding)`. A tensor's bytes are read when they are
asked for, whole or some of its rows: a view of the mapped file, a read by position, or a request for a range where the
folder stands for one in a bucket or on the hub (ranges.py). Opening 700 GB thus takes milliseconds here and a request a
shard elsewhere, a host holds only what it is placing, and an incomplete download is found at opening, by name, not in
the middle of a load. Files come from the internet: every number of a header is checked before it is used, and shards
must be in the folder of their index.

Both headers are parsed here and not by the formats' own packages: `gguf.GGUFReader` takes seconds for a vocabulary of
50 thousand, and safetensors' numpy interface has no float8. Dequantization uses the gguf package.

Left out: writing; pickled checkpoints (`pytorch_model.bin`); GGUF files in parts or from big-endian machines.

Format: https://github.com/huggingface/safetensors#format
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from r1jax.core.errors import UserError
from r1jax.core.tensors import gguf_header
from r1jax.core.tensors.gguf_header import Entry, check_ranges
from r1jax.core.tensors.ranges import File, LocalFile, find_file, is_served

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
HEADER_LIMIT = 100_000_000  # bytes; the format's own bound, so that a corrupt header cannot request terabytes
REQUESTS = 32  # of headers at a time, where each is one over the network
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class TensorFile:
    """Tensors of one model by name. Shapes are in numpy's order, `[out, in]` for a linear layer in both formats.

    `metadata` is a GGUF file's key-value pairs, or the metadata of a safetensors header (of the index, if there is
    one). `is_remote`: whether a file of it is read over the network.
    """

    def __init__(
        self, path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, Any], files: Mapping[Path, File]
    ):
        self.path = path
        self.metadata = dict(metadata)
        self._entries, self._files = dict(entries), dict(files)
        self.is_remote = any(file.is_remote for file in files.values())

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

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """One tensor, or its rows from the first to before the second of `rows`.

        A whole unquantized tensor of a local file is a read-only view of the mapped file, not a copy; of rows only
        their bytes are read.
        """
        entry = self._entry(name)
        file, shape, start, stop = self._files[entry.file], entry.shape, entry.start, entry.start + entry.length
        if rows is not None:
            shape, step = (rows[1] - rows[0], *shape[1:]), entry.length // max(1, shape[0])
            start, stop = entry.start + rows[0] * step, entry.start + rows[1] * step
        view = rows is None and isinstance(file, LocalFile)
        data = np.asarray(file.mapped[start:stop]) if view else file.read(start, stop)  # type: ignore[attr-defined]
        if entry.quantization is None:
            return data.view(entry.dtype).reshape(shape)
        blocks = gguf.quant_shape_to_byte_shape(shape, entry.quantization) if shape else (entry.length,)
        try:
            return gguf.quants.dequantize(data.reshape(blocks), entry.quantization).reshape(shape)
        except NotImplementedError:
            raise UserError(
                f"{entry.file}: tensor {name!r} is stored as {entry.quantization.name}, "
                "which is not supported; use a GGUF file with another quantization"
            ) from None

    def count_bytes(self, name: str, rows: tuple[int, int] | None = None) -> int:
        """Bytes of the file that `read` reads."""
        entry = self._entry(name)
        return entry.length if rows is None else entry.length // max(1, entry.shape[0]) * (rows[1] - rows[0])

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise UserError(f"{self.path}: no tensor {name!r} among {len(self._entries)}")
        return self._entries[name]


_remote: dict[Path, TensorFile] = {}  # what is not here does not change while a process runs: it is opened once


def open_tensors(path: str | Path) -> TensorFile:
    """Opens a Hugging Face folder, one `.safetensors` file or one `.gguf` file.

    Raises UserError, naming the file (and the tensor), for anything missing, truncated, or of another format.
    """
    path = Path(path)
    if path in _remote:
        return _remote[path]
    tensors = _open(path)
    if tensors.is_remote:
        _remote[path] = tensors
    return tensors


def _open(path: Path) -> TensorFile:
    file = find_file(path) if path.suffix == ".safetensors" else None
    if file is None and not path.exists():
        raise UserError(f"no such model file or folder: {path}")
    if path.is_dir():
        return _open_files(path, *_list_weights(path))
    if file is None and not path.is_file():
        raise UserError(f"{path}: neither a file nor a folder")
    if path.suffix == ".gguf":
        metadata, entries = gguf_header.read_header(path)
        return TensorFile(path, entries, metadata, {path: LocalFile(path)})
    if file is not None:
        entries, metadata = _parse_safetensors(path, file)
        return TensorFile(path, entries, metadata, {path: file})
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


def list_weights(folder: Path) -> list[Path]:
    """The files of a folder's weights, wherever they are; the adapters' where it has nothing else."""
    adapters = folder / "adapter_model.safetensors"
    try:
        names = _list_weights(folder)[0]
    except UserError:
        names = []
    found = [folder / name for name in names]
    return found if found or find_file(adapters) is None else [adapters]


def _list_weights(folder: Path) -> tuple[list[str], dict[str, str], dict[str, Any]]:
    """Names of a folder's files of weights, the index (tensor -> file; empty without one), and its metadata."""
    index = folder / INDEX
    if not index.exists():
        if find_file(folder / SINGLE) is None:
            raise UserError(f"{folder}: contains neither {SINGLE} nor {INDEX}")
        return [SINGLE], {}, {}
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        weight_map: dict[str, str] = dict(content["weight_map"])
        metadata = dict(content.get("metadata") or {})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{index}: not an index of safetensors ({type(error).__name__}: {error})") from None
    if not weight_map:
        raise UserError(f"{index}: names no tensor (weight_map is empty)")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", ".."):
            raise UserError(f"{index}: a shard must be the name of a file beside the index, got {str(shard)[:80]!r}")
    return sorted(set(weight_map.values())), weight_map, metadata


def _open_files(
    folder: Path, names: Sequence[str], weight_map: Mapping[str, str], metadata: Mapping[str, Any]
) -> TensorFile:
    if is_served(folder):
        with ThreadPoolExecutor(REQUESTS) as pool:
            opened = list(pool.map(lambda name: _open_shard(folder / name), names))
    else:
        opened = [_open_shard(folder / name) for name in names]
    if not weight_map:
        ((file, entries, metadata),) = opened
        return TensorFile(folder, entries, metadata, {folder / names[0]: file})
    shards = {name: entries for name, (_, entries, _) in zip(names, opened, strict=True)}
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise UserError(f"{folder / shard}: has no tensor {name!r}, though {INDEX} says so")
    entries = {name: entry for shard in shards.values() for name, entry in shard.items() if name in weight_map}
    files = {folder / name: file for name, (file, _, _) in zip(names, opened, strict=True)}
    return TensorFile(folder, entries, metadata, files)


def _open_shard(path: Path) -> tuple[File, dict[str, Entry], dict[str, Any]]:
    file = find_file(path)
    if file is None:
        raise UserError(f"{path}: missing, though {INDEX} names it; download the rest of the model")
    return file, *_parse_safetensors(path, file)


def _parse_safetensors(path: Path, file: File) -> tuple[dict[str, Entry], dict[str, Any]]:
    prefix = file.read(0, min(8, file.size)).tobytes()
    header_length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else HEADER_LIMIT + 1
    if header_length > min(HEADER_LIMIT, file.size - 8):
        raise UserError(f"{path}: not a safetensors file, or cut off in its header ({file.size} bytes)")
    raw = file.read(8, 8 + header_length).tobytes()
    try:
        header = json.loads(raw)
        metadata = dict(header.pop("__metadata__", None) or {})
        entries = {name: _safetensors_entry(path, 8 + header_length, name, info) for name, info in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: header of safetensors is broken ({type(error).__name__}: {error})") from None
    check_ranges(path, file.size, entries)
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
