"""Pairs of completions, one preferred to the other, from rows of several forms as tokenized examples.

A row holds `prompt`, `chosen` and `rejected`, each a text or messages. Chosen and rejected may repeat the prompt
(UltraFeedback), or hold it alone, without a column `prompt` (Anthropic's HH); the common beginning is then the prompt.
A margin is the column `margin`, or the difference of `score_chosen` and `score_rejected` (TRL's and UltraFeedback's
names, also `chosen_score` …). An example holds both sequences, the chosen one first, so that a pair lies in one row of
a batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from r1jax.core.errors import UserError
from r1jax.data.corpus import SourceConfig
from r1jax.data.examples import Example, check_messages, encode_row, list_columns, truncate
from r1jax.data.sources import SourceRow
from r1jax.data.tasks import RowError, check_prompt, choose_template
from r1jax.text.tokenizer import Tokenizer

SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen-rating", "rejected-rating"))
TURN = "\n\nAssistant:"  # what opens the last turn in texts of HH


class Pair(NamedTuple):
    """An example (examples.py) of several sequences one after the other, the tokens of each, and the pair's margin."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    sizes: tuple[int, ...]
    margin: float

    def cut(self) -> list[Example]:
        """Its sequences."""
        ends = np.cumsum(self.sizes)[:-1]
        parts = zip(*(np.split(array, ends) for array in self[:3]), strict=True)
        return [Example(*arrays) for arrays in parts]


def join_pair(sequences: Sequence[Example], margin: float) -> Pair:
    """The pair of these sequences."""
    tokens, targets, weights = (np.concatenate(arrays) for arrays in zip(*sequences, strict=True))
    return Pair(tokens, targets, weights, tuple(len(sequence.tokens) for sequence in sequences), margin)


def make_pair_encoder(
    source: SourceConfig, tokenizer: Tokenizer, *, longest: int, truncation: str, whole: bool = False
) -> Callable[[SourceRow], list[Pair]]:
    """Function from a source row to its pair (none if it does not fit and `truncation` is "drop", or if both sides are
    the same).

    longest: tokens of a sequence. whole: sequences that are scored at their last token, which is fed then; without, the
    last token is a target only. The function raises UserError for a malformed row.
    """
    make_prompt = choose_template(source.template)

    def encode(row: SourceRow) -> list[Pair]:
        columns = dict(row.columns)
        for ours, theirs in source.columns.items():
            if theirs not in row.columns:
                has = list_columns(row.columns)
                raise RowError(f'no column "{theirs}" for {ours} (config.data.sources.*.columns); it has {has}')
            columns[ours] = row.columns[theirs]
        prompt, chosen, rejected = read_pair(columns)
        if chosen == rejected:
            return []
        if isinstance(prompt, str) and isinstance(chosen, str) and "prompt" in columns:
            prompt = make_prompt(prompt)
        sides = []
        for completion in (chosen, rejected):
            (example,) = encode_row({"prompt": prompt, "completion": completion}, tokenizer)
            example = append_last(example) if whole else example
            sides.append(truncate(example, longest, truncation))  # type: ignore[arg-type]
        kept = [side for side in sides if side is not None]
        return [join_pair(kept, read_margin(columns))] if len(kept) == 2 else []

    return encode


def append_last(example: Example) -> Example:
    """The same ids with the last one fed; its target is no token, and its weight marks a sequence as not empty."""
    return Example(
        np.append(example.tokens, example.targets[-1:]),
        np.append(example.targets, np.int32(0)),
        np.append(example.weights, np.float32(1)),
    )


def read_pair(columns: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """(prompt, chosen, rejected) of a row: texts, or messages of which the completions are the last ones.

    Raises UserError for a row that lacks a column, or whose completions begin alike nowhere.
    """
    missing = [name for name in ("chosen", "rejected") if columns.get(name) is None]
    if missing:
        raise UserError(f"a preference row needs prompt, chosen and rejected; got {list_columns(columns)}")
    chosen, rejected = columns["chosen"], columns["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise UserError("chosen and rejected must both be texts or both be messages")
    if isinstance(chosen, str):
        if "prompt" in columns:
            return check_prompt(columns["prompt"]), chosen, rejected
        common = os.path.commonprefix((chosen, rejected))
        cut = common.rfind(TURN) + len(TURN) if TURN in common else 0
        if not cut:
            raise UserError(
                f"a preference row without prompt needs texts that share a beginning up to {TURN.strip()!r}"
            )
        return common[:cut], chosen[cut:], rejected[cut:]
    check_messages(chosen), check_messages(rejected)
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    shared = min(len(chosen), len(rejected)) - 1 if same is None else same
    while shared and chosen[shared - 1].get("role") == "assistant":
        shared -= 1  # an answer before the difference belongs to the completions
    prompt = columns.get("prompt")
    if shared:
        return chosen[:shared], chosen[shared:], rejected[shared:]
    if prompt is None:
        raise UserError("a preference row without prompt needs messages that begin with the same ones")
    prompt = check_prompt(prompt)
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, chosen, rejected


def read_margin(columns: Mapping[str, Any]) -> float:
    """The margin of a row, or the difference of its scores; 0 where it has neither. Raises UserError for no number."""
    value: Any = columns.get("margin")
    for chosen, rejected in SCORES:
        if value is None and columns.get(chosen) is not None and columns.get(rejected) is not None:
            try:
                value = float(columns[chosen]) - float(columns[rejected])
            except (TypeError, ValueError):
                value = columns[chosen]
    try:
        margin = float(0.0 if value is None else value)
    except (TypeError, ValueError):
        raise UserError(f"a margin must be a number, got {str(value)[:60]!r}") from None
    if not np.isfinite(margin):
        raise UserError(f"a margin must be finite, got {margin}")
    return margin


def add_mismatched(pairs: Sequence[Pair], longest: int) -> list[Pair]:
    """The pairs with a third sequence: the prompt with the chosen completion of the next pair, as KTO compares."""
    found = []
    for pair, other in zip(pairs, [*pairs[1:], *pairs[:1]], strict=True):
        chosen, rejected = pair.cut()[:2]
        said = other.cut()[0]
        start, theirs = (int(np.argmax(example.weights > 0)) for example in (chosen, said))
        ids = np.concatenate([chosen.tokens[: start + 1], said.targets[theirs:]])[: longest + 1]
        weights = (np.arange(len(ids) - 1) >= start).astype(np.float32)
        found.append(join_pair([chosen, rejected, Example(ids[:-1], ids[1:], weights)], pair.margin))
    return found
