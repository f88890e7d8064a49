"""Overlap between texts: n-grams shared with a benchmark, and near duplicates within a set.

A text is contaminated if it shares an n-gram of words with a benchmark's questions or solutions (DeepSeek-R1 uses n =
10, arXiv:2501.12948). A benchmark text of fewer words contaminates only texts of the same words. Near duplicates are
found by MinHash (Broder 1997): signatures of word shingles, whose bands are equal for likely pairs; the share of equal
entries then estimates the Jaccard similarity. Memory: half a kilobyte of signature per text.
"""

import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from r1jax.data.files import read_rows

HASHES, BANDS = 128, 32
SHINGLE_WORDS = 3
# A word is a run of letters and digits, or one character of a script without spaces.
_WORD = re.compile("[\u3041-\u30ff\u3400-\u9fff]|[^\\W_\u3041-\u30ff\u3400-\u9fff]+")


def split_words(text: str) -> list[str]:
    """Words of a text in lower case, without punctuation."""
    return _WORD.findall(text.casefold())


class Contamination:
    """N-grams of benchmark texts; `text in contamination` is True if the text shares one."""

    def __init__(self, texts: Iterable[str], n: int = 10):
        self._n = n
        self._grams: set[tuple[str, ...]] = set()
        for words in map(split_words, texts):
            self._grams.update(zip(*(words[i:] for i in range(n)), strict=False) if len(words) >= n else [tuple(words)])
        self._grams.discard(())

    def __contains__(self, text: str) -> bool:
        words = split_words(text)
        if len(words) < self._n:
            return tuple(words) in self._grams
        return any(gram in self._grams for gram in zip(*(words[i:] for i in range(self._n)), strict=False))


def read_texts(paths: Sequence[str], *, key: str) -> list[str]:
    """All texts in the rows of benchmark files, whatever their columns are called."""
    return [text for path in paths for row in read_rows(path, key=key) for text in _find_texts(row.columns)]


def _find_texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inner for text in _find_texts(part)]


def find_near_duplicates(texts: Sequence[str], similarity: float) -> list[bool]:
    """For each text, whether an earlier unmarked text is at least so similar (0 to 1)."""
    generator = np.random.default_rng(0)
    odd = generator.integers(0, 1 << 63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    add = generator.integers(0, 1 << 63, HASHES, dtype=np.uint64)
    signatures: list[np.ndarray] = []
    tables: list[dict[bytes, list[int]]] = [{} for _ in range(BANDS)]
    marked = []
    for number, text in enumerate(texts):
        signature = _sign(text, odd, add)
        signatures.append(signature)
        keys = [band.tobytes() for band in signature.reshape(BANDS, -1)]
        likely = {other for table, key in zip(tables, keys, strict=True) for other in table.get(key, ())}
        marked.append(any(float((signatures[other] == signature).mean()) >= similarity for other in likely))
        if not marked[-1]:
            for table, key in zip(tables, keys, strict=True):
                table.setdefault(key, []).append(number)
    return marked


def _sign(text: str, odd: np.ndarray, add: np.ndarray) -> np.ndarray:
    """MinHash signature: smallest value of each hash function over the shingles, uint32 [HASHES]."""
    words = split_words(text)
    count = max(1, len(words) - SHINGLE_WORDS + 1)
    shingles = {zlib.crc32(" ".join(words[i : i + SHINGLE_WORDS]).encode()) for i in range(count)}
    values = np.fromiter(shingles, np.uint64)
    hashed = (values[:, None] * odd + add) >> np.uint64(32)  # multiply-shift hashing; overflow is intended
    return hashed.min(0).astype(np.uint32)
