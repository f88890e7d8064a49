"""Batches of packed rows for SFT, on grain: sources mixed by weight, shuffled by seed, packed best-fit, restartable.

Documents of many lengths share rows of one static length; each is a segment of its own, so none attends to another
(`segment_mask` in models/attention.py). Order and packing are a function of (seed, position) alone: every process
builds the same global batch and places its own rows of it. The state of an iterator is plain numbers, and restoring
it gives the exact next batch. Batches are read ahead in a thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np
from grain.experimental import BestFitPackIterDataset, ThreadPrefetchIterDataset

from r1jax.core.errors import UserError
from r1jax.data.examples import Example

Batch = dict[str, np.ndarray]
_FEATURES = ("tokens", "targets", "weights")


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """length: T, the places of a row. bins: rows that are filled side by side; more of them leave less padding, and
    hold that many rows in memory. packed: False gives each document a row of its own. read_ahead: batches made in
    advance.
    """

    length: int = 1024
    bins: int = 64
    packed: bool = True
    read_ahead: int = 2


class SequenceLoader:
    """An endless iterator over global batches: tokens, targets, segments, positions int32 and weights float32 [B, T].

    sources: examples of each source, in file order; mixing: their shares (any positive numbers; default: by size).
    """

    def __init__(
        self,
        sources: Sequence[Sequence[Example]],
        rows: int,
        packing: PackingConfig,
        *,
        mixing: Sequence[float] | None = None,
        seed: int = 0,
        epochs: int | None = None,
    ):
        if not sources or not all(sources):
            raise UserError("every source of config.data needs at least one example to train on")
        longest = max(len(example.tokens) for source in sources for example in source)
        if longest > packing.length:
            raise UserError(f"an example of {longest} tokens is longer than config.data.length = {packing.length}")
        dataset = _mix(sources, mixing, seed, epochs).map(_as_features).to_iter_dataset()
        if packing.packed:
            dataset = BestFitPackIterDataset(
                dataset,
                length_struct=dict.fromkeys(_FEATURES, packing.length),
                num_packing_bins=packing.bins,
                seed=seed,
            )
        else:
            dataset = dataset.map(lambda features: _pad(features, packing.length))
        dataset = dataset.batch(rows, drop_remainder=epochs is None).map(_name_fields)
        self._iterator = iter(ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=packing.read_ahead))

    def __iter__(self) -> SequenceLoader:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return self._iterator.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where `get_state` was taken."""
        self._iterator.set_state(state)

    def close(self) -> None:
        """Stops reading ahead."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()


def _mix(
    sources: Sequence[Sequence[Example]], mixing: Sequence[float] | None, seed: int, epochs: int | None
) -> grain.MapDataset:
    parts = [
        grain.MapDataset.source(source).seed(seed + number).shuffle().repeat(epochs)
        for number, source in enumerate(sources)
    ]
    if len(parts) == 1:
        return parts[0]
    shares = list(mixing or map(len, sources))
    if len(shares) != len(parts) or min(shares) <= 0:
        raise UserError(f"the weights of config.data.sources must be positive, one a source; got {shares}")
    return grain.MapDataset.mix(parts, [share / sum(shares) for share in shares])


def _as_features(example: Example) -> dict[str, np.ndarray]:
    return dict(zip(_FEATURES, example, strict=True))


def _pad(features: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    """A row of one document, in the form the packer gives."""
    size = len(features["tokens"])
    row = {name: np.pad(value, (0, length - size)) for name, value in features.items()}
    row["tokens_segment_ids"] = np.pad(np.ones(size, np.int32), (0, length - size))
    row["tokens_positions"] = np.pad(np.arange(size, dtype=np.int32), (0, length - size))
    return row


def _name_fields(row: dict[str, np.ndarray]) -> Batch:
    named = {name: row[name] for name in _FEATURES}
    named["segments"], named["positions"] = row["tokens_segment_ids"], row["tokens_positions"]
    return {name: np.asarray(v, np.float32 if name == "weights" else np.int32) for name, v in named.items()}


def utilisation(batch: Batch) -> float:
    """The share of places that hold a token."""
    return float((batch["segments"] > 0).mean())
