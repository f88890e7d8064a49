"""Runs on pairs of completions, one preferred to the other: what DPO and reward models share."""

from __future__ import annotations

from typing import Any

from r1jax.data.corpus import Corpus
from r1jax.data.preferences.pair_corpus import load_pairs
from r1jax.data.preferences.pair_loader import PairLoader
from r1jax.data.sequences import PackingConfig, SequenceLoader
from r1jax.learner.preferences import share_pairs
from r1jax.stages.sft import PackedRun


class PairRun(PackedRun):
    """One run on pairs. sequences: of a pair. whole: whether they are scored at their last tokens."""

    sequences, whole = 2, False
    share = staticmethod(share_pairs)

    def open_data(self) -> Corpus:
        """The pairs to train on and held out."""
        return load_pairs(self.settings.data, self.tokenizer, sequences=self.sequences, whole=self.whole)

    def make_loader(self, sources: Any, rows: int, packing: PackingConfig, **options: Any) -> SequenceLoader:
        """Batches of `rows` rows of pairs."""
        return PairLoader(sources, rows, packing, sequences=self.sequences, **options)
