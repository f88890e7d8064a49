"""The pairs of all sources of a run, to train on and held out."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from r1jax.core.errors import UserError
from r1jax.data.corpus import Corpus, CorpusConfig, Encoder, Source, load_corpus, load_source
from r1jax.data.preferences.pairs import Pair, add_mismatched, make_pair_encoder
from r1jax.text.tokenizer import Tokenizer


def load_pairs(config: CorpusConfig, tokenizer: Tokenizer, *, sequences: int = 2, whole: bool = False) -> Corpus:
    """The pairs (`Pair`) of all sources. sequences: of a pair, 3 with mismatched ones; each has at most
    config.length / sequences tokens, so that a pair fits a row. whole: as in `make_pair_encoder`.

    Raises UserError for a missing file, a malformed row, or a source without a usable pair.
    """
    longest = config.length // sequences
    if longest < 2:
        raise UserError(f"config.data.length must be at least {2 * sequences} for pairs, got {config.length}")

    def load(config: CorpusConfig, name: str, _: Encoder) -> Source:
        dropped = collections.Counter[str]()
        pair = make_pair_encoder(
            config.sources[name], tokenizer, longest=longest, truncation=config.truncation, whole=whole
        )

        def encode(row: Any) -> Any:
            found = pair(row)
            dropped["rows"] += not found
            return found

        source = load_source(dataclasses.replace(config, truncation="right"), name, encode)
        notes = [*source.notes]
        if dropped["rows"]:
            notes.append(f"{name}: {dropped['rows']} pairs of equal texts or longer than {longest} tokens dropped")
        if sequences == 2:
            return source._replace(notes=notes)
        return Source(_join(source.train, longest), _join(source.held_out, longest), notes)

    return load_corpus(config, tokenizer, load)


def _join(pairs: Sequence[Any], longest: int) -> list[Any]:
    found: list[Pair] = add_mismatched(pairs, longest) if pairs else []
    return found
