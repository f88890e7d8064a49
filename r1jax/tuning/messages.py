"""Messages of the Tinker API in protocol buffers: data of a training request in, log-probs and samples out.

Names and numbers of the fields are those of the public message format (tinker_public.proto); the classes are made here
from the tables below. Arrays travel as raw little-endian bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from r1jax.core.errors import UserError
from r1jax.tuning.trainer import Scored

PACKAGE = "r1jax_tinker"
_TYPES = {"double": 1, "int64": 3, "uint64": 4, "int32": 5, "bool": 8, "string": 9, "bytes": 12, "uint32": 13}
# Messages: their fields by number, each "type name"; "*" repeated, "?" optional, "|" one of several.
_MESSAGES: dict[str, dict[int, str]] = {
    "SampleResponse": {
        1: "*SampledSequence sequences",
        2: "?bytes prompt_logprobs",
        3: "TopkLogprobs topk_prompt_logprobs",
        4: "int32 prompt_cache_hit_tokens",
        5: "Tensor target_prompt_logprobs",
    },
    "SampledSequence": {
        1: "int32 stop_reason",
        2: "bytes tokens",
        3: "?bytes logprobs",
        4: "TopkLogprobs topk_sampled_logprobs",
    },
    "TopkLogprobs": {1: "bytes token_ids", 2: "bytes logprobs", 3: "uint32 k", 4: "uint32 length"},
    "SparseCsr": {1: "bytes values", 2: "bytes crow_indices", 3: "bytes col_indices"},
    "Tensor": {1: "|bytes dense", 2: "|SparseCsr sparse_csr", 3: "int32 dtype", 4: "*int64 shape"},
    "BatchedTensor": {1: "bytes data", 2: "bytes offsets", 3: "int32 dtype", 4: "*int64 trailing_shape"},
    "ArrayRecord": {1: "string type_tag", 2: "*FieldsEntry fields", 3: "int64 num_datums"},
    "FieldsEntry": {1: "string key", 2: "BatchedTensor value"},
    "ForwardBackwardOutput": {
        1: "string loss_fn_output_type",
        2: "*ArrayRecord loss_fn_outputs",
        3: "*MetricsEntry metrics",
    },
    "MetricsEntry": {1: "string key", 2: "double value"},
    "ForwardBackwardRequest": {
        1: "string model_id",
        2: "int32 seq_id",
        3: "*Datum data",
        4: "string loss_fn",
        5: "*MetricsEntry loss_fn_config",
        6: "bool forward_only",
        7: "*ConfigEntry loss_fn_config_v2",
    },
    "ConfigEntry": {1: "string key", 2: "ConfigValue value"},
    "ConfigValue": {1: "|double number", 2: "|string text"},
    "Datum": {1: "*Chunk model_input", 2: "*InputsEntry loss_fn_inputs"},
    "InputsEntry": {1: "string key", 2: "Tensor value"},
    "Chunk": {1: "|EncodedText encoded_text", 2: "|Other image", 3: "|Other dmel"},
    "EncodedText": {1: "bytes tokens"},
    "Other": {},
}
FLOAT32, INT64, INT32, BFLOAT16 = 1, 2, 3, 4
_DTYPES = {FLOAT32: "<f4", INT64: "<i8", INT32: "<i4", BFLOAT16: "<u2"}
MOST_CELLS = 1 << 24  # of a tensor that is written out whole


@functools.cache
def message_class(name: str) -> Any:
    """The class of a message."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{PACKAGE}.proto", package=PACKAGE, syntax="proto3")
    for message, fields in _MESSAGES.items():
        made = file.message_type.add(name=message)
        for number, text in fields.items():
            kind, field_name = text.lstrip("*?|").split()
            field = made.field.add(name=field_name, number=number, label=3 if text[0] == "*" else 1)
            if kind in _TYPES:
                field.type = _TYPES[kind]  # type: ignore[assignment]
            else:
                field.type, field.type_name = 11, f".{PACKAGE}.{kind}"  # type: ignore[assignment]
            if text[0] in "?|":
                choice = f"_{field_name}" if text[0] == "?" else "choice"
                names = [one.name for one in made.oneof_decl]
                if choice not in names:
                    made.oneof_decl.add(name=choice)
                field.oneof_index = [one.name for one in made.oneof_decl].index(choice)
                field.proto3_optional = text[0] == "?"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[attr-defined]
    classes = message_factory.GetMessageClassesForFiles([file.name], pool)
    _made.update({full.rpartition(".")[2]: made for full, made in classes.items()})
    return _made[name]


_made: dict[str, Any] = {}


def _new(name: str) -> Any:
    if not _made:
        message_class(name)
    return _made[name]


def read_training(body: bytes) -> Any:
    """The message ForwardBackwardRequest. Raises UserError if the bytes are none."""
    message = _new("ForwardBackwardRequest")()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise UserError(f"the body is no ForwardBackwardRequest in protocol buffers ({error})") from None
    return message


def read_numbers(message: Any) -> dict[str, Any]:
    """loss_fn_config of a request: numbers and texts by name."""
    numbers: dict[str, Any] = {entry.key: entry.value for entry in message.loss_fn_config}
    for entry in message.loss_fn_config_v2:
        numbers[entry.key] = getattr(entry.value, entry.value.WhichOneof("choice") or "number")
    return numbers


def read_datum(message: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Token ids [T] and inputs by name of a message Datum. Raises UserError for other chunks than text."""
    pieces = []
    for chunk in message.model_input:
        if (kind := chunk.WhichOneof("choice")) != "encoded_text":
            raise UserError(f"model_input takes chunks of text, got {kind}: this model reads no images or sounds")
        pieces.append(_read_array(chunk.encoded_text.tokens, "<i4", "model_input"))
    tokens = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
    inputs = {entry.key: read_tensor(entry.value, entry.key) for entry in message.loss_fn_inputs}
    return tokens, inputs


def read_tensor(message: Any, name: str) -> np.ndarray:
    """The array of a message Tensor, a sparse one written out with zeros. Raises UserError for one that is broken."""
    form, shape = _DTYPES.get(message.dtype), tuple(message.shape)
    if form is None:
        raise UserError(f"loss_fn_inputs.{name}: the dtype number {message.dtype} is not known")
    if any(size < 0 for size in shape) or np.prod(shape, dtype=np.float64) > MOST_CELLS:
        raise UserError(f"loss_fn_inputs.{name}: the shape {list(shape)} is not possible")
    if message.WhichOneof("choice") == "sparse_csr":
        return _read_sparse(message.sparse_csr, shape, form, name)
    array = _widen(_read_array(message.dense, form, name), message.dtype)
    if shape and array.size != np.prod(shape):
        raise UserError(f"loss_fn_inputs.{name}: the shape {list(shape)} does not fit its {array.size} values")
    return array.reshape(shape) if shape else array


def _read_sparse(message: Any, shape: tuple[int, ...], form: str, name: str) -> np.ndarray:
    values = _read_array(message.values, form, name)
    starts, columns = (_read_array(raw, "<i8", name) for raw in (message.crow_indices, message.col_indices))
    is_whole = (
        len(shape) == 2
        and len(starts) == shape[0] + 1
        and len(columns) == len(values)
        and starts[0] == 0
        and starts[-1] == len(values)
        and (np.diff(starts) >= 0).all()
        and (not len(columns) or (columns.min() >= 0 and columns.max() < shape[1]))
    )
    if not is_whole:
        raise UserError(f"loss_fn_inputs.{name}: the sparse tensor of shape {list(shape)} is broken")
    dense = np.zeros(shape, values.dtype)
    dense[np.repeat(np.arange(shape[0]), np.diff(starts)), columns] = values
    return dense


def _read_array(raw: bytes, form: str, name: str) -> np.ndarray:
    if len(raw) % np.dtype(form).itemsize:
        raise UserError(f"{name}: {len(raw)} bytes are no whole number of values")
    return np.frombuffer(raw, form)


def _widen(array: np.ndarray, dtype: int) -> np.ndarray:
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == BFLOAT16 else array


def write_scores(scored: Sequence[Scored], metrics: Mapping[str, float]) -> bytes:
    """A message ForwardBackwardOutput: log-probs of the targets of each datum."""
    message = _new("ForwardBackwardOutput")(loss_fn_output_type="ArrayRecord")
    for group in _split_by_trailing([one.logprobs for one in scored]):
        record = message.loss_fn_outputs.add(type_tag="ArrayRecord", num_datums=len(group))
        raw = [np.ascontiguousarray(array, "<f4").tobytes() for array in group]
        entry = record.fields.add(key="logprobs")
        entry.value.data, entry.value.dtype = b"".join(raw), FLOAT32
        entry.value.offsets = np.cumsum([0, *map(len, raw)], dtype="<i8").tobytes()
        entry.value.trailing_shape.extend(group[0].shape[1:])
    for key, value in metrics.items():
        message.metrics.add(key=key, value=value)
    return message.SerializeToString()


def _split_by_trailing(arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    groups: list[list[np.ndarray]] = []
    for array in arrays:
        if not groups or groups[-1][-1].shape[1:] != array.shape[1:]:
            groups.append([])
        groups[-1].append(array)
    return groups


def write_samples(
    sequences: Sequence[Mapping[str, Any]],
    prompt_logprobs: Sequence[float] | None = None,
    topk: tuple[np.ndarray, np.ndarray] | None = None,
    targets: np.ndarray | None = None,
) -> bytes:
    """A message SampleResponse. sequences: with tokens, logprobs, stopped, and topk (ids and log-probs [n, K]) or None.
    prompt_logprobs: NaN where there is none. topk: of the prompt. targets: log-probs of asked ids [P - 1, K].
    """
    message = _new("SampleResponse")()
    for sequence in sequences:
        made = message.sequences.add(stop_reason=0 if sequence["stopped"] else 1)
        made.tokens = np.asarray(sequence["tokens"], "<i4").tobytes()
        made.logprobs = np.asarray(sequence["logprobs"], "<f4").tobytes()
        if sequence.get("topk") is not None:
            _fill_topk(made.topk_sampled_logprobs, *sequence["topk"])
    if prompt_logprobs is not None:
        message.prompt_logprobs = np.asarray(prompt_logprobs, "<f4").tobytes()
    if topk is not None:
        _fill_topk(message.topk_prompt_logprobs, *topk)
    if targets is not None:
        tensor = message.target_prompt_logprobs
        tensor.dense, tensor.dtype = np.ascontiguousarray(targets, "<f4").tobytes(), FLOAT32
        tensor.shape.extend(targets.shape)
    return message.SerializeToString()


def _fill_topk(message: Any, ids: np.ndarray, logprobs: np.ndarray) -> None:
    message.length, message.k = ids.shape
    message.token_ids = np.ascontiguousarray(ids, "<i4").tobytes()
    message.logprobs = np.ascontiguousarray(logprobs, "<f4").tobytes()
