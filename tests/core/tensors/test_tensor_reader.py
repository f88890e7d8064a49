"""Both formats against their own packages' readers, and every way a download can be broken."""

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from r1jax.core.errors import UserError
from r1jax.core.tensors.tensor_reader import open_tensors, unpermute_rope

ROOT = Path(__file__).parents[3]
TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.weight": np.linspace(-1, 1, 6).astype(ml_dtypes.bfloat16).reshape(2, 3),
    "c.ids": np.array([[1, -2]], dtype=np.int64),
    "d.scalar": np.array(2.5, dtype=np.float16),
    "e.empty": np.zeros((0, 4), dtype=np.float32),
}


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A GGUF with one tensor of each common kind. Returns what was put in."""
    draw = np.random.default_rng(0)
    tensors = {f"{kind.name}.weight": draw.standard_normal((6, 256), dtype=np.float32) for kind in KINDS}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", "tiny é")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_array("tokenizer.ggml.tokens", ["a", "é", "Ġb"])
    writer.add_array("tokenizer.ggml.token_type", [1, 3, -1])
    for (name, values), kind in zip(tensors.items(), KINDS, strict=True):
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


KINDS = [getattr(gguf.GGMLQuantizationType, name) for name in ("F32", "F16", "BF16", "Q8_0", "Q4_1", "Q5_0")]


def write_header(path: Path, header: dict, data: bytes = b"") -> Path:
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def test_safetensors_folder_reads_what_was_saved(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    file = open_tensors(tmp_path)
    assert sorted(file.names) == sorted(TENSORS) and "a.weight" in file and "z" not in file
    assert file.metadata == {"format": "pt"}
    for name, expected in TENSORS.items():
        assert file.shape(name) == expected.shape and file.dtype(name) == expected.dtype
        np.testing.assert_array_equal(file.read(name), expected)
        assert file.read(name).dtype == expected.dtype


def test_float8_is_read(tmp_path: Path) -> None:
    values = np.array([1.5, -2, 448], ml_dtypes.float8_e4m3fn)
    info = {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [0, 3]}
    file = open_tensors(write_header(tmp_path / "model.safetensors", {"x": info}, values.tobytes()))
    np.testing.assert_array_equal(file.read("x").astype(np.float32), [1.5, -2, 448])


def test_shards_are_one_file(tmp_path: Path) -> None:
    names = sorted(TENSORS)
    shards = {"model-1.safetensors": names[:2], "model-2.safetensors": names[2:]}
    for shard, held in shards.items():
        save_file({name: TENSORS[name] for name in held}, tmp_path / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    file = open_tensors(tmp_path)
    assert sorted(file.names) == names and file.metadata == {"total_size": 1}
    for name in names:
        np.testing.assert_array_equal(file.read(name), TENSORS[name])

    index.write_text(json.dumps({"weight_map": {**weight_map, "f": "model-2.safetensors"}}))
    with pytest.raises(UserError, match=r"model-2\.safetensors: has no tensor 'f'"):
        open_tensors(tmp_path)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-1\.safetensors: missing"):
        open_tensors(tmp_path)
    index.write_text("{}")
    with pytest.raises(UserError, match=r"index\.json: not an index"):
        open_tensors(tmp_path)


def test_gguf_reads_as_its_own_package_does(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    written = write_gguf(path)
    file, reader = open_tensors(path), gguf.GGUFReader(path)
    assert file.names == tuple(tensor.name for tensor in reader.tensors)
    for tensor in reader.tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        values = file.read(tensor.name)
        plain = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}.get(tensor.tensor_type.name, np.float32)
        assert values.dtype == plain == file.dtype(tensor.name)
        assert values.shape == (6, 256) == file.shape(tensor.name)
        np.testing.assert_array_equal(values.astype(np.float32), expected)
        np.testing.assert_allclose(values.astype(np.float32), written[tensor.name], atol=0.3)  # 4 bits are coarse
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert file.metadata == fields
    assert file.metadata["tokenizer.ggml.tokens"] == ["a", "é", "Ġb"]


@pytest.mark.parametrize("length", [0, 10, 30, 100, 250])
def test_gguf_cut_off_in_its_header_is_named(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"cut\.gguf: (not a GGUF file|cut off in its header)"):
        open_tensors(path)


def test_gguf_cut_off_in_its_tensors_names_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut\.gguf: cut off: tensor 'Q5_0\.weight'"):
        open_tensors(path)


def test_gguf_of_other_versions_and_parts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    with pytest.raises(UserError, match="version 50331648"):
        open_tensors(path)
    key = b"split.count"
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key + struct.pack("<IH", 2, 3))
    with pytest.raises(UserError, match="one of 3 parts"):
        open_tensors(path)


@pytest.mark.parametrize(
    "header, message",
    [
        ({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "cut off: tensor 'x'"),
        ({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, r"'x' of shape \[3\] and float32 cannot be 8"),
        ({"x": {"dtype": "Q3", "shape": [3], "data_offsets": [0, 8]}}, "'x' has the dtype 'Q3'"),
        ({"x": {"shape": [3]}}, "header of safetensors is broken"),
    ],
)
def test_broken_safetensors_name_file_and_tensor(tmp_path: Path, header: dict, message: str) -> None:
    with pytest.raises(UserError, match=rf"model\.safetensors: .*{message}"):
        open_tensors(write_header(tmp_path / "model.safetensors", header, b"8 bytes."))


def test_noise_is_no_safetensors(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(UserError, match="not a safetensors file"):
        open_tensors(tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model file or folder: .*absent"):
        open_tensors(tmp_path / "absent")
    with pytest.raises(UserError, match="contains neither model.safetensors nor"):
        open_tensors(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="a model is a folder"):
        open_tensors(tmp_path / "model.bin")
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no tensor 'z'"):
        open_tensors(tmp_path).read("z")


def test_unpermuting_turns_neighbours_into_halves() -> None:
    # One head of width 6: Hugging Face's rows 0..5 stand in a GGUF as 0 3 1 4 2 5.
    stored = np.array([0, 3, 1, 4, 2, 5, 10, 13, 11, 14, 12, 15])
    np.testing.assert_array_equal(unpermute_rope(stored, 2), [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15])
    with pytest.raises(ValueError, match="heads of even width"):
        unpermute_rope(np.zeros((6, 2)), 4)


def test_demo_model_equals_transformers_bit_for_bit(demo_model: Path) -> None:
    golden = json.loads((ROOT / "tests/goldens/weights.json").read_text())
    file = open_tensors(demo_model)
    for stored, heads, name in [
        ("blk.0.attn_q", 9, "model.layers.0.self_attn.q_proj"),
        ("blk.29.attn_k", 3, "model.layers.29.self_attn.k_proj"),
        ("blk.3.attn_v", None, "model.layers.3.self_attn.v_proj"),
        ("blk.3.ffn_down", None, "model.layers.3.mlp.down_proj"),
        ("token_embd", None, "model.embed_tokens"),
    ]:
        weight = file.read(f"{stored}.weight")
        weight = weight if heads is None else unpermute_rope(weight, heads)
        assert list(weight.shape) == golden[f"{name}.weight"]["shape"]
        assert hashlib.sha256(weight.tobytes()).hexdigest() == golden[f"{name}.weight"]["sha256"], name


# --- Hostile files ---

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        {"x": {**GOOD, "data_offsets": [0.0, 8.0]}},
        {"x": {**GOOD, "data_offsets": [-8, 0]}},
        {"x": {**GOOD, "data_offsets": [8, 0]}},
        {"x": {**GOOD, "data_offsets": ["0", "8"]}},
        {"x": {**GOOD, "data_offsets": [0]}},
        {"x": {**GOOD, "shape": [-1, -2]}},
        {"x": {**GOOD, "shape": [True, 2]}},
        {"x": {**GOOD, "shape": ["2"]}},
        {"x": {**GOOD, "shape": 2}},
        {"x": {"dtype": "F32", "shape": [0, 2**70], "data_offsets": [0, 8]}},
        {"x": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}},
        {"x": [1, 2]},
        {"x": None},
        {"__metadata__": 7, "x": GOOD},
        {"__metadata__": "text", "x": GOOD},
        [GOOD],
    ],
)
def test_a_hostile_header_is_one_clear_line(tmp_path: Path, header: object) -> None:
    with pytest.raises(UserError, match="model.safetensors: ") as caught:
        open_tensors(write_header(tmp_path / "model.safetensors", header, bytes(8)))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_deep_header_is_one_clear_line(tmp_path: Path) -> None:
    raw = b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)
    with pytest.raises(UserError, match="header of safetensors is broken"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("shard", ["../other/model.safetensors", "/etc/passwd", "..", "", 7, ["a"], None])
def test_a_shard_lies_beside_its_index(tmp_path: Path, shard: object) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save_file(TENSORS, other / "model.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": shard}}))
    with pytest.raises(UserError, match=r"index\.json: (a shard must be the name of a file|not an index)"):
        open_tensors(folder)


def test_a_pipe_is_no_shard_and_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        open_tensors(tmp_path / "pipe.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "pipe.safetensors"}}))
    with pytest.raises(UserError, match="pipe.safetensors: missing"):
        open_tensors(tmp_path)


def make_gguf(path: Path, *pairs: bytes, tensors: tuple[bytes, ...] = ()) -> Path:
    """A GGUF file with raw key-value pairs and raw tensor infos."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    path.write_bytes(head + b"".join(pairs) + b"".join(tensors) + bytes(512))
    return path


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key: str, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


def info(*dimensions: int, kind: int = 0, rank: int | None = None) -> bytes:
    rank = len(dimensions) if rank is None else rank
    return text("x") + struct.pack(f"<I{len(dimensions)}QIQ", rank, *dimensions, kind, 0)


NESTED = struct.pack("<IQ", 9, 1) * 500 + struct.pack("<IQ", 0, 0)
HOSTILE: dict[str, Callable[[Path], Path]] = {
    "nested arrays": lambda path: make_gguf(path, pair("a", 9, NESTED)),
    "alignment 0": lambda path: make_gguf(path, pair("general.alignment", 4, struct.pack("<I", 0))),
    "alignment text": lambda path: make_gguf(path, pair("general.alignment", 8, text("32"))),
    "alignment float": lambda path: make_gguf(path, pair("general.alignment", 6, struct.pack("<f", 32.0))),
    "split.count text": lambda path: make_gguf(path, pair("split.count", 8, text("2"))),
    "ragged blocks": lambda path: make_gguf(path, tensors=(info(33, 2, kind=2),)),
    "huge dimensions": lambda path: make_gguf(path, tensors=(info(2**63, 2**63),)),
    "many dimensions": lambda path: make_gguf(path, tensors=(info(1, rank=2**31),)),
    "unknown value": lambda path: make_gguf(path, pair("a", 99, b"")),
    "bad text": lambda path: make_gguf(path, pair("a", 8, struct.pack("<Q", 2) + b"\xff\xfe")),
    "huge text": lambda path: make_gguf(path, pair("a", 8, struct.pack("<Q", 2**62))),
    "huge array": lambda path: make_gguf(path, pair("a", 9, struct.pack("<IQ", 0, 2**62))),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_gguf_is_one_clear_line(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(UserError, match="hostile.gguf: ") as caught:
        open_tensors(make(tmp_path / "hostile.gguf"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
