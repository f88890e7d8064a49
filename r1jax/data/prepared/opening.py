"""The corpus of a run: large sources from prepared sets, which are made where they are missing, small ones in memory.

Both give the same examples in the same order, so nothing else of a run depends on it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence

from r1jax.core.buckets.staging import is_address
from r1jax.core.startup.voice import activity
from r1jax.data.corpus import Corpus, CorpusConfig, Encoder, Source, SourceConfig, load_corpus, load_source
from r1jax.data.files import find_files
from r1jax.data.formats import identify_file
from r1jax.data.prepared.preparation import find_folder, find_set, is_whole, prepare_set, read_plan
from r1jax.data.prepared.prepared_set import open_set
from r1jax.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

ABOVE = 64 << 20  # bytes of all source files from which a start prepares them


def open_corpus(config: CorpusConfig, tokenizer: Tokenizer) -> Corpus:
    """`load_corpus`, with sources prepared if their files are large together, or if they are prepared already."""
    files = {name: list_files(config, name) for name in config.sources if find_folder() is not None}
    size = sum(identify_file(file)[0] for found in files.values() for file in found)

    def load(config: CorpusConfig, name: str, encode: Encoder) -> Source:
        if not (found := files.get(name)):
            return load_source(config, name, encode)
        folder = find_set(found, config.sources[name], config, tokenizer)
        if not is_whole(folder):
            if size <= ABOVE:
                return load_source(config, name, encode)
            log.info("%s: encoding %.0f MB into %s", name, size / 1e6, folder)
            key = f"config.data.sources.{name}.path"
            prepare_set(folder, found, config.sources[name], config, tokenizer, name=name, key=key)
        with activity(f"opening the prepared set {name}"):
            return open_set(folder, len(read_plan(folder)), config, name, encode)

    return load_corpus(config, tokenizer, load)


def prepare_corpus(config: CorpusConfig, tokenizer: Tokenizer) -> Iterator[str]:
    """Prepares every source that is read from files, whatever its size, and opens them all; lines of what was done.

    Raises UserError for whatever `open_corpus` would.
    """
    for name, source in config.sources.items():
        files = list_files(config, name)
        if not files:
            continue
        folder = find_set(files, source, config, tokenizer)
        if is_whole(folder):
            yield f"{name}: is prepared in {folder}"
            continue
        key = f"config.data.sources.{name}.path"
        done = prepare_set(folder, files, source, config, tokenizer, name=name, key=key)
        tokens, seconds = done["tokens"], done["seconds"]
        rate = tokens / max(seconds, 1e-9)
        yield f"{name}: {tokens:,} tokens encoded in {seconds:.0f} s ({rate:,.0f} tokens/s), in {folder}"
    yield from open_corpus(config, tokenizer).notes


def list_files(config: CorpusConfig, name: str) -> Sequence[str]:
    """The files of a source that could be prepared; none of a procedural one, one of weight 0, one that only the
    package `datasets` reads, or one that is missing.
    """
    source = config.sources[name]
    if is_procedural(source) or source.weight == 0:
        return ()
    found = find_files(source.path, key=f"config.data.sources.{name}.path") or ()
    return found if all(is_address(file) or os.path.isfile(file) for file in found) else ()


def is_procedural(source: SourceConfig) -> bool:
    """Whether the rows of a source are drawn, not read."""
    return source.path == "addition" or source.path.startswith("reasoning_gym:")
