"""Hostile model folders: what makes each, and what the error must name."""

import json
import os
import pathlib
import struct
from collections.abc import Callable
from typing import Any

from tests.inputs.case import Make, copy_model, folder, with_config, with_file, with_tokenizer_entry


def _header(change: Callable[[dict[str, Any]], Any]) -> Make:
    """A model whose safetensors header is changed."""

    def rewrite(content: bytes) -> bytes:
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + size])
        header = change(header) or header
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + size :]

    return with_file("model.safetensors", rewrite)


def _entry(**values: Any) -> Make:
    return _header(lambda header: header["model.norm.weight"].update(values))


def _index(weight_map: Any, shard: str | None = None) -> Make:
    """A model with an index file; its one shard is renamed to `shard`."""

    def make(path: pathlib.Path, model: pathlib.Path) -> None:
        copy_model(path, model)
        (path / "model.safetensors").rename(path / (shard or "shard.safetensors"))
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return make


def _fifo(path: pathlib.Path, model: pathlib.Path) -> None:
    copy_model(path, model)
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")


def _fifo_shard(path: pathlib.Path, model: pathlib.Path) -> None:
    _index({"model.norm.weight": "pipe.safetensors"})(path, model)
    os.mkfifo(path / "pipe.safetensors")


def _weights_folder(path: pathlib.Path, model: pathlib.Path) -> None:
    copy_model(path, model)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").mkdir()


# Name -> (what makes the folder, words of the error). Each is answered alike by every command that reads weights.
FOLDERS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "empty folder": (folder, ("config.json is missing",)),
    "config is a list": (with_file("config.json", "[1, 2]"), ("config.json", "object")),
    "config is cut off": (with_file("config.json", '{"model_type": "llama", '), ("config.json", "not JSON")),
    "config is binary": (with_file("config.json", b"\xff\xfe\x00\x01"), ("config.json",)),
    "config is empty": (with_file("config.json", ""), ("config.json",)),
    "config is deep": (with_file("config.json", "[" * 100_000), ("config.json",)),
    "config without type": (with_config(model_type=...), ("model_type",)),
    "unknown type": (with_config(model_type="gpt99"), ("gpt99",)),
    "type is a list": (with_config(model_type=["llama"]), ("model_type",)),
    "negative width": (with_config(hidden_size=-64), ("hidden_size", "-64")),
    "width is text": (with_config(hidden_size="64"), ("hidden_size", "64")),
    "width missing": (with_config(hidden_size=...), ("hidden_size",)),
    "layers null": (with_config(num_hidden_layers=None), ("num_hidden_layers",)),
    "layers 2.5": (with_config(num_hidden_layers=2.5), ("num_hidden_layers", "2.5")),
    "layers 1,000,000": (with_config(num_hidden_layers=1_000_000), ("num_hidden_layers", "1000000")),
    "layers 4000": (with_config(num_hidden_layers=4000), ("num_hidden_layers",)),
    "layers 3": (with_config(num_hidden_layers=3), ("layer",)),
    "heads 0": (with_config(num_attention_heads=0), ("num_attention_heads",)),
    "heads do not divide": (with_config(num_attention_heads=15), ("o_proj", "(64, 120)")),
    "vocabulary 10^12": (with_config(vocab_size=10**12), ("vocab_size",)),
    "vocabulary 10^7": (with_config(vocab_size=10**7), ("embed_tokens",)),
    "epsilon is text": (with_config(rms_norm_eps="small"), ("rms_norm_eps",)),
    "theta 0": (with_config(rope_theta=0), ("rope_theta",)),
    "positions negative": (with_config(max_position_embeddings=-1), ("max_position_embeddings",)),
    "rope unknown": (with_config(rope_scaling={"rope_type": "magic"}), ("magic",)),
    "rope is a list": (with_config(rope_scaling=[1]), ("config.json is broken",)),
    "rope factor text": (with_config(rope_scaling={"rope_type": "linear", "factor": "two"}), ("factor",)),
    "activation unknown": (with_config(hidden_act="gelu_magic"), ("hidden_act", "gelu_magic")),
    "tied is text": (with_config(tie_word_embeddings="maybe"), ("tie_word_embeddings",)),
    "no weights": (with_file("model.safetensors", None), ("safetensors",)),
    "weights empty": (with_file("model.safetensors", b""), ("model.safetensors",)),
    "weights cut off": (
        with_file("model.safetensors", lambda content: content[: len(content) // 2]),
        ("model.safetensors",),
    ),
    "header of 2^60 bytes": (with_file("model.safetensors", struct.pack("<Q", 2**60) + b"{}"), ("model.safetensors",)),
    "header is no JSON": (with_file("model.safetensors", struct.pack("<Q", 8) + b"notjson!"), ("model.safetensors",)),
    "header is deep": (
        with_file("model.safetensors", struct.pack("<Q", 100_000) + b"[" * 100_000),
        ("model.safetensors",),
    ),
    "header is a list": (with_file("model.safetensors", struct.pack("<Q", 2) + b"[]"), ("model.safetensors",)),
    "offsets negative": (_entry(data_offsets=[-8, 248]), ("model.norm.weight",)),
    "offsets are floats": (_entry(data_offsets=[0.5, 256.5]), ("model.norm.weight",)),
    "offsets beyond the end": (_entry(data_offsets=[0, 10**15]), ("model.norm.weight",)),
    "shape negative": (_entry(shape=[-64]), ("model.norm.weight",)),
    "shape too large": (_entry(shape=[10**12]), ("model.norm.weight",)),
    "shape of another model": (_entry(shape=[32, 2]), ("model.norm.weight",)),
    "dtype unknown": (_entry(dtype="F13"), ("model.norm.weight",)),
    "tensor missing": (_header(lambda h: {k: v for k, v in h.items() if k != "model.norm.weight"}), ("model.norm",)),
    "weights are a folder": (_weights_folder, ("model.safetensors",)),
    "weights are a pipe": (_fifo, ("model.safetensors",)),
    "shard is a pipe": (_fifo_shard, ("pipe.safetensors",)),
    "shard missing": (_index({"model.norm.weight": "other.safetensors"}), ("other.safetensors",)),
    "shard leaves the folder": (_index({"model.norm.weight": "../x.safetensors"}), ("../x.safetensors",)),
    "shard is absolute": (_index({"model.norm.weight": "/etc/passwd"}), ("/etc/passwd",)),
    "shard is a number": (_index({"model.norm.weight": 7}), ("index",)),
    "index is a list": (_index([1, 2]), ("index",)),
}

# As above, for what only a command that reads the tokenizer must refuse.
TOKENIZERS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "tokenizer cut off": (
        with_file("tokenizer.json", lambda content: content[: len(content) // 2]),
        ("tokenizer.json",),
    ),
    "tokenizer is a list": (with_file("tokenizer.json", "[]"), ("tokenizer.json",)),
    "tokenizer empty": (with_file("tokenizer.json", ""), ("tokenizer.json",)),
    "tokenizer config is a list": (with_file("tokenizer_config.json", "[]"), ("tokenizer_config.json",)),
    "tokenizer config cut off": (with_file("tokenizer_config.json", '{"a": '), ("tokenizer_config.json",)),
    "generation config is a list": (with_file("generation_config.json", "[2]"), ("generation_config.json",)),
    "generation config cut off": (with_file("generation_config.json", "{"), ("generation_config.json",)),
    "stop id is text": (with_file("generation_config.json", '{"eos_token_id": "two"}'), ("eos_token_id",)),
    "stop id negative": (with_file("generation_config.json", '{"eos_token_id": [-1]}'), ("eos_token_id",)),
    "sentencepiece is text": (
        lambda path, model: (
            with_file("tokenizer.json", None)(path, model),
            (path / "tokenizer.model").write_text("no model"),
        )[0],
        ("tokenizer.model",),
    ),
}


def template(text: Any) -> Make:
    """A model with this chat template."""
    return with_tokenizer_entry(chat_template=text)
