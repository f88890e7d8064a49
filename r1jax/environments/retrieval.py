"""Retrieval over a corpus of documents: BM25 (Robertson and Zaragoza 2009) by the package bm25s.

The corpus is a JSONL file of `text` (and `title`, if it has one), named by `config.episode.arguments.corpus` or by the
column `corpus`; one index of it is shared by all trajectories.
"""

from __future__ import annotations

import functools
import json
import pathlib
import threading
from typing import Any

from r1jax.core.errors import UserError
from r1jax.core.extras import require

MOST_RESULTS = 10
_CHARACTERS = 1000  # of a document that a result shows
_lock = threading.Lock()


class Retrieval:
    """Search of a corpus. Attributes for rewards: queries, found (line numbers, from 0, of what was shown)."""

    def reset(self, corpus: str = "", **row: Any) -> None:
        """Begins a trajectory."""
        if not corpus:
            raise UserError("retrieval needs config.episode.arguments.corpus, a JSONL file with text")
        with _lock:
            self._index = open_index(corpus)
        self.queries: list[str] = []
        self.found: list[int] = []

    def search(self, query: str, results: int = 3) -> str:
        """Finds the documents that fit a query best.

        Args:
            query: Words to look for.
            results: Number of documents, at most 10.

        Returns:
            The documents, the best first.
        """
        self.queries.append(query)
        lines = self._index.search(query, max(1, min(results, MOST_RESULTS)))
        self.found += lines
        return "\n\n".join(self._index.show(line) for line in lines) or "nothing found"


class Index:
    """Documents of a JSONL file and their BM25 index."""

    def __init__(self, path: pathlib.Path):
        bm25s = require("bm25s", "retrieval", "config.environment = retrieval")
        self._bm25s, self.documents = bm25s, read_corpus(path)
        self._index = bm25s.BM25()
        texts = [f"{document.get('title', '')} {document['text']}" for document in self.documents]
        self._index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)

    def search(self, query: str, count: int) -> list[int]:
        """Lines of the documents that share a word with the query, the best first; ties by line."""
        tokens = self._bm25s.tokenize(query, show_progress=False, return_ids=False)
        scores = self._index.get_scores(tokens[0])
        best = sorted(range(len(scores)), key=lambda line: (-scores[line], line))[:count]
        return [line for line in best if scores[line] > 0]

    def show(self, line: int) -> str:
        """A document as the model reads it."""
        document = self.documents[line]
        head = f"{document['title']}\n" if document.get("title") else ""
        return head + document["text"][:_CHARACTERS]


def read_corpus(path: pathlib.Path) -> list[dict[str, str]]:
    """The documents of a JSONL file. Raises UserError for a missing file and for a line without `text`."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise UserError(f"config.episode.arguments.corpus: {path} cannot be read ({error.strerror})") from None
    documents = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line) if line.strip() else None
        except ValueError:
            value = ""
        if value is None:
            continue
        if not (isinstance(value, dict) and isinstance(value.get("text"), str)):
            raise UserError(f"{path}:{number}: a document needs text, got {line[:60]}")
        documents.append(value)
    if not documents:
        raise UserError(f"{path} holds no documents")
    return documents


@functools.lru_cache(maxsize=4)
def open_index(path: str) -> Index:
    """The index of a file, made once."""
    return Index(pathlib.Path(path))
