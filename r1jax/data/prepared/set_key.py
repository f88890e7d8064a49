"""Identity of a prepared set: a digest of everything that its bytes depend on.

That is the content of the source files, the settings of their encoding, the tokenizer, and the code that encodes (its
sources and the release of tokenizers). Contents are digested once: a cache remembers them by the file's size, times and
inode (in a bucket by the object's own checksum).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import socket
from collections.abc import Sequence

import r1jax
from r1jax.core.atomic_file import replace_file
from r1jax.core.buckets.staging import is_address
from r1jax.data.corpus import CorpusConfig, SourceConfig
from r1jax.data.formats import find_suffix, identify_file, open_bytes
from r1jax.text.tokenizer import Tokenizer

LAYOUT = 1  # of shards and their index
_CODE = ("text", "data/examples.py", "data/corpus.py", "data/sources.py", "data/formats.py", "data/prepared/shards.py")
_NO_PART = ("path", "eval_path", "weight", "problems", "args")  # of a source: other sets, or none of its bytes


def make_key(
    files: Sequence[str],
    source: SourceConfig,
    config: CorpusConfig,
    tokenizer: Tokenizer,
    piece_bytes: int,
    cache: pathlib.Path,
) -> str:
    """The key of a set, 24 hexadecimal digits. `cache` is the folder that remembers digests of contents."""
    settings = {name: value for name, value in dataclasses.asdict(source).items() if name not in _NO_PART}
    parts = {
        "layout": [LAYOUT, piece_bytes],
        "files": [(find_suffix(file), digest_content(file, cache)) for file in files],
        "source": settings,
        "length": [config.length, config.truncation],
        "tokenizer": digest_tokenizer(tokenizer),
        "code": [digest_code(), importlib.metadata.version("tokenizers")],
    }
    return _digest(json.dumps(parts, sort_keys=True).encode())


def digest_content(file: str, cache: pathlib.Path) -> str:
    """Digest of the bytes of a file."""
    facts = identify_file(file)
    name = file if is_address(file) else str(pathlib.Path(file).resolve())
    known = cache / _digest(json.dumps([name, *facts]).encode())
    with contextlib.suppress(OSError):
        return known.read_text("utf-8")
    digest = hashlib.blake2b(digest_size=12)
    if is_address(file):
        digest.update(repr(facts).encode())
    else:
        with open_bytes(file) as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    write_shared(known, digest.hexdigest())
    return digest.hexdigest()


def write_shared(file: pathlib.Path, text: str) -> None:
    """Writes a file that other processes may write at the same time, with the same content."""
    file.parent.mkdir(parents=True, exist_ok=True)
    own = file.with_name(f"{file.name}.{socket.gethostname()}.{os.getpid()}")
    replace_file(own, text)
    os.replace(own, file)


def digest_tokenizer(tokenizer: Tokenizer) -> str:
    """Digest of all that a tokenizer does."""
    facts = [tokenizer.backend.to_str()]
    facts += [repr(getattr(tokenizer, f.name)) for f in dataclasses.fields(tokenizer) if f.name != "backend"]
    return _digest("\n".join(facts).encode("utf-8", "surrogatepass"))


def digest_code() -> str:
    """Digest of the sources of r1jax that turn a row into an example."""
    root = pathlib.Path(r1jax.__file__).parent
    files = [file for name in _CODE for file in (sorted((root / name).rglob("*.py")) or [root / name])]
    return _digest(b"\n".join(file.read_bytes() for file in files))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()
