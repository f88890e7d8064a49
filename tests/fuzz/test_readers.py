"""Damaged and hostile files: every reader gives a value or refuses in one line, whatever the bytes are."""

import json
import struct

import gguf
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save

from r1jax.core.tensors.tensor_reader import open_tensors
from r1jax.data.corpus import SourceConfig, make_encoder
from r1jax.data.sources import RowErrors, SourceRow, read_jsonl
from r1jax.text.tokenizer import Tokenizer
from r1jax.weights.pretrained import open_model
from tests.fuzz.budget import FUZZ, VALUES, altered, damaged, read_or_refuse
from tests.tiny_model import CHAT_TEMPLATE, CONFIG, SPECIALS, write_tiny_model

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16), "c": np.zeros(0, np.int8)}
SAFETENSORS = save(TENSORS, {"format": "pt"})
HEADER = json.loads(SAFETENSORS[8 : 8 + struct.unpack("<Q", SAFETENSORS[:8])[0]])
INDEX = {"metadata": {"total_size": 32}, "weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny model, whose files the fuzzers replace."""
    return write_tiny_model(tmp_path_factory.mktemp("fuzz") / "model")


def make_gguf(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_array("some.texts", ["a", "b"])
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_uint32("llama.block_count", 1)
    writer.add_tensor("plain", np.ones((2, 32), np.float32))
    blocks = gguf.quants.quantize(np.ones((2, 32), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
    return make_gguf(tmp_path_factory.mktemp("gguf") / "x.gguf")


def replace(path, content):
    """Writes a new file: one that is still mapped must not shrink."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


def read_all(path):
    file = open_tensors(path)
    for name in file.names:
        array = file.read(name)
        assert array.shape == file.shape(name) and array.dtype == file.dtype(name)
        assert array.nbytes <= 16 * path.stat().st_size
    return file


def refuse_or_read(path, content):
    replace(path, content)
    return read_or_refuse(lambda: read_all(path))


@FUZZ
@given(data=st.data())
def test_safetensors_of_damaged_bytes(data, folder):
    refuse_or_read(folder.parent / "x.safetensors", data.draw(damaged(SAFETENSORS)))


@FUZZ
@given(header=altered(HEADER))
def test_safetensors_of_another_header(header, folder):
    raw = json.dumps(header).encode()
    refuse_or_read(folder.parent / "y.safetensors", struct.pack("<Q", len(raw)) + raw + b"\0" * 40)


@FUZZ
@given(data=st.data())
def test_gguf_of_damaged_bytes(data, folder, gguf_bytes):
    file = refuse_or_read(folder.parent / "x.gguf", data.draw(damaged(gguf_bytes)))
    if file is not None:
        read_or_refuse(lambda: Tokenizer.from_gguf(file.metadata))
        read_or_refuse(lambda: open_model(folder.parent / "x.gguf"))


@FUZZ
@given(index=altered(INDEX))
@example(index={**INDEX, "weight_map": []})
def test_indexes(index, folder):
    place = folder.parent / "sharded"
    place.mkdir(exist_ok=True)
    replace(place / "one.safetensors", SAFETENSORS)
    replace(place / "model.safetensors.index.json", json.dumps(index).encode())
    read_or_refuse(lambda: open_tensors(place).names)


@FUZZ
@given(config=altered({**CONFIG, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}))
def test_config_json(config, folder):
    replace(folder / "config.json", json.dumps(config).encode())
    read_or_refuse(lambda: open_model(folder))


@FUZZ
@given(data=st.data())
def test_config_json_of_damaged_bytes(data, folder):
    replace(folder / "config.json", data.draw(damaged(json.dumps(CONFIG).encode())))
    read_or_refuse(lambda: open_model(folder))


TOKENIZER = {
    "version": "1.0",
    "added_tokens": [
        {"id": 4, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": True}
    ],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated", "invert": False},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": [["a", "b"]]},
}
TOKENIZER_CONFIG = {"eos_token": "<s>", "pad_token": {"content": "<s>"}, "chat_template": CHAT_TEMPLATE}


@FUZZ
@given(tokenizer=altered(TOKENIZER), config=altered(TOKENIZER_CONFIG) | st.just(TOKENIZER_CONFIG))
def test_tokenizers(tokenizer, config, tmp_path_factory):
    place = tmp_path_factory.getbasetemp() / "tokenizer"
    place.mkdir(exist_ok=True)
    replace(place / "tokenizer.json", json.dumps(tokenizer).encode())
    replace(place / "tokenizer_config.json", json.dumps(config).encode())
    made = read_or_refuse(lambda: Tokenizer.from_folder(place))
    if made is not None:
        ids = read_or_refuse(lambda: made.encode("ab<s> aaac \u2028\U0001f600", add_special=True))
        read_or_refuse(lambda: made.decode(ids or []))


GGUF_METADATA = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>"],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3],
    "tokenizer.ggml.eos_token_id": 3,
    "tokenizer.ggml.bos_token_id": 3,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": CHAT_TEMPLATE,
}
SENTENCEPIECE = GGUF_METADATA | {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "\u2581a", "b", "<s>"],
    "tokenizer.ggml.scores": [0.0, -1.0, -2.0, 0.0],
    "tokenizer.ggml.token_type": [2, 1, 1, 3],
}


@FUZZ
@example(metadata={"tokenizer.ggml.model": "gpt2"})
@example(metadata=GGUF_METADATA | {"tokenizer.ggml.eos_token_id": "3"})
@example(metadata=GGUF_METADATA | {"tokenizer.ggml.pre": ["qwen2"]})
@example(metadata=GGUF_METADATA | {"tokenizer.chat_template": 7})
@given(metadata=altered(GGUF_METADATA) | altered(SENTENCEPIECE))
def test_vocabularies_of_gguf(metadata):
    made = read_or_refuse(lambda: Tokenizer.from_gguf(metadata))
    if made is not None:
        read_or_refuse(lambda: made.encode("ab<s> aaac \u2028\U0001f600", add_special=True))


ROW = {"prompt": [{"role": "user", "content": "a"}], "completion": "b", "solution": "1", "text": "c", "n": [1, 2]}
ENCODE = make_encoder(SourceConfig("x.jsonl"), Tokenizer.of_bytes(SPECIALS))


@FUZZ
@given(data=st.data(), row=altered(ROW) | VALUES)
def test_rows(data, row, tmp_path_factory):
    line = json.dumps(row).encode()
    content = b"\n".join([line, data.draw(damaged(line)), line])
    path = replace(tmp_path_factory.getbasetemp() / "rows.jsonl", content)
    read_or_refuse(lambda: read_jsonl(path))
    rows = read_jsonl(path, RowErrors("skip"))
    rows.append(SourceRow("x", {"\n": None}))  # found by this fuzzer: a name of a column that holds a line end
    for found in rows:
        json.dumps(found.columns, ensure_ascii=False).encode()
        read_or_refuse(lambda found=found: ENCODE(found))
