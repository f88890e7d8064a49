"""Overlap between texts: n-grams shared with a benchmark, and near duplicates within a set.

A text is contaminated if it shares an n-gram of words with a benchmark's questions or solutions (DeepSeek-R1 uses n =
10, arXiv:2501.12948). A benchmark text of fewer words contaminates only texts of the same words. Near duplicates are
found by MinHash (Broder 1997): signatures of word shingles, whose bands are equal for likely pairs; the share of equal
entries then estimates the Jaccard similarity. Texts come one at a time and are not kept; memory is 1.5 to 2.5 kilobytes
a text that is no duplicate.
"""

import functools
import hashlib
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


class NearDuplicates:
    """Signatures of the texts so far, but of those marked as near duplicates; similarity: from 0 to 1.

    The bands are in one table of open addressing: the digest of a band leads to the last text that has it, and from
    each text a chain leads to the one before.
    """

    def __init__(self, similarity: float):
        self._similarity, self._count = similarity, 0
        self._signatures, self._before = _Rows(HASHES, np.uint32), _Rows(BANDS, np.int32)
        self._digests, self._last = np.zeros(1024, np.uint64), np.full(1024, -1, np.int32)

    def mark(self, signature: np.ndarray) -> bool:
        """Whether an earlier unmarked text is at least so similar to that of this signature; else it is remembered."""
        likely = self._find_likely(signature)
        marked = any(float((self._signatures[other] == signature).mean()) >= self._similarity for other in likely)
        if not marked:
            self.remember(signature)
        return marked

    def remember(self, signature: np.ndarray) -> None:
        """Adds a text that is no near duplicate."""
        if 2 * BANDS * (self._count + 1) > len(self._last):
            self._grow()
        self._signatures.append(signature)
        self._before.append(self._add(_digest_bands(signature), self._count))
        self._count += 1

    def _find_likely(self, signature: np.ndarray) -> set[int]:
        likely: set[int] = set()
        places = self._find_places(_digest_bands(signature))
        for band, number in enumerate(self._last[places].tolist()):
            while number >= 0:
                likely.add(number)
                number = int(self._before[number][band])
        return likely

    def _find_places(self, digests: np.ndarray) -> np.ndarray:
        """For each digest its place in the table, or the free one that it would take."""
        mask = np.uint64(len(self._last) - 1)
        places = digests & mask
        while True:
            other = (self._last[places] >= 0) & (self._digests[places] != digests)
            if not other.any():
                return places
            places[other] = (places[other] + np.uint64(1)) & mask

    def _add(self, digests: np.ndarray, number: int) -> np.ndarray:
        """Makes a text the last one of its bands; returns those that were, -1 for none."""
        before = np.full(BANDS, -1, np.int32)
        for band in range(BANDS):  # one after the other: two may want the same free place
            place = self._find_places(digests[band : band + 1])[0]
            before[band] = self._last[place]
            self._digests[place], self._last[place] = digests[band], number
        return before

    def _grow(self) -> None:
        used = self._last >= 0
        digests, last = self._digests[used], self._last[used]
        size = 2 * len(self._last)
        self._digests, self._last = np.zeros(size, np.uint64), np.full(size, -1, np.int32)
        while len(digests):
            places = self._find_places(digests)
            _, first = np.unique(places, return_index=True)  # of those that want the same place, one gets it
            self._digests[places[first]], self._last[places[first]] = digests[first], last[first]
            digests, last = np.delete(digests, first), np.delete(last, first)


class _Rows:
    """Rows of numbers of one width, in blocks, so that growing copies nothing."""

    def __init__(self, width: int, dtype: Any):
        self._make = lambda: np.empty((1024, width), dtype)
        self._blocks: list[np.ndarray] = []
        self._count = 0

    def append(self, row: np.ndarray) -> None:
        if self._count == 1024 * len(self._blocks):
            self._blocks.append(self._make())
        self._blocks[-1][self._count % 1024] = row
        self._count += 1

    def __getitem__(self, number: int) -> np.ndarray:
        return self._blocks[number // 1024][number % 1024]


def sign(text: str) -> np.ndarray:
    """MinHash signature: smallest value of each hash function over the shingles, uint32 [HASHES]."""
    odd, add = _draw_hashes()
    words = split_words(text)
    count = max(1, len(words) - SHINGLE_WORDS + 1)
    shingles = {zlib.crc32(" ".join(words[i : i + SHINGLE_WORDS]).encode()) for i in range(count)}
    values = np.fromiter(shingles, np.uint64)
    hashed = (values[:, None] * odd + add) >> np.uint64(32)  # multiply-shift hashing; overflow is intended
    return hashed.min(0).astype(np.uint32)


@functools.cache
def _draw_hashes() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    odd = generator.integers(0, 1 << 63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return odd, generator.integers(0, 1 << 63, HASHES, dtype=np.uint64)


def _digest_bands(signature: np.ndarray) -> np.ndarray:
    """64 bits of each band, which differ between bands of equal content, uint64 [BANDS]."""
    bands = signature.reshape(BANDS, -1)
    digests = [hashlib.blake2b(bytes([number]) + band.tobytes(), digest_size=8) for number, band in enumerate(bands)]
    return np.frombuffer(b"".join(digest.digest() for digest in digests), np.uint64).copy()
