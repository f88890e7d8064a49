"""Packing of completions into rows of one static shape, with each prompt computed once for the completions in its row.

A row is `prompt, completion, completion, ..., prompt, completion, ...`; a completion attends to its prompt and itself
(`segment_mask` in models/attention.py), at the positions it would have alone. The common prefix of all prompts (a
template) is in no row: the model computes it once per batch and all rows attend to it. Rows are thus nearly full at any
mix of lengths, one program is compiled, and a prompt's cost is shared. The logits that predict a token are at its
predecessor, which for the first token of every completion is the prompt's last position; hence each target has an
index.

With long completions a shared prompt saves little, and kernels for long rows support only segments that attend to
themselves. Each completion then follows its own copy of the prompt, in one segment with it (`share_prompts` = False).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

PADDING = -1


@dataclasses.dataclass(frozen=True)
class RowShape:
    """Static shape of a row, which fits any prompt with `completions` completions of `completion_tokens` each, or more
    shorter ones.

    prompt_tokens: of the longest prompt, without the `prefix` tokens that all prompts share. share_prompts: whether a
    prompt occurs once per row instead of before each completion.
    """

    prompt_tokens: int
    completion_tokens: int
    completions: int
    prefix: int = 0
    share_prompts: bool = True

    @property
    def targets(self) -> int:
        """R, the positions with a loss."""
        return self.completions * self.completion_tokens

    @property
    def length(self) -> int:
        """T, the input tokens."""
        return self.prompt_tokens * (1 if self.share_prompts else self.completions) + self.targets

    @property
    def pairs(self) -> float:
        """(query, key) pairs under the mask in a full row, without those inside the prefix."""
        P, C = self.prompt_tokens, self.completion_tokens
        prompts = 1 if self.share_prompts else self.completions
        completions = self.completions * (C * (self.prefix + P) + C**2 / 2)
        return prompts * (P * self.prefix + P**2 / 2) + completions


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """All rows of an update.

    Inputs [B, T]: tokens, positions, segments, prefixes. Targets [B, R]: index of the predecessor, target id, source
    (position in the concatenation of all completions; PADDING: no target), and sequences (index within the row of the
    completion).
    """

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    prefixes: np.ndarray
    index: np.ndarray
    targets: np.ndarray
    source: np.ndarray
    sequences: np.ndarray

    @property
    def counts(self) -> tuple[int, int, int]:
        """(tokens fed, targets, pairs of a query and a key that it sees), without padding."""
        fed = self.segments > 0
        return int(fed.sum()), int((self.source >= 0).sum()), int((self.positions + 1)[fed].sum())

    def lay_out(self, flat: np.ndarray, padding: int = 0) -> np.ndarray:
        """Maps values per completion token (concatenated) to [B, R, ...], with `padding` where there is no target."""
        laid_out = flat[np.maximum(self.source, 0)]
        laid_out[self.source == PADDING] = padding
        return laid_out


@dataclasses.dataclass
class _Row:
    """A row being filled: input pieces (segment, prefix, first position, ids) and targets (index, id, source,
    completion).
    """

    tokens: list[int] = dataclasses.field(default_factory=list)
    positions: list[int] = dataclasses.field(default_factory=list)
    segments: list[int] = dataclasses.field(default_factory=list)
    prefixes: list[int] = dataclasses.field(default_factory=list)
    targets: list[tuple[int, int, int, int]] = dataclasses.field(default_factory=list)
    completions: int = 0
    segment: int = 0
    prompt: int = PADDING
    prompt_segment: int = 0
    prompt_end: int = 0

    def add(self, ids: Sequence[int], start: int, prefix: int) -> int:
        self.segment += 1
        self.tokens += ids
        self.positions += range(start, start + len(ids))
        self.segments += [self.segment] * len(ids)
        self.prefixes += [prefix] * len(ids)
        return self.segment


def pack_completions(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    owners: Sequence[int],
    shape: RowShape,
    *,
    multiple: int = 1,
    skip: Sequence[bool] | None = None,
) -> PackedRows:
    """Packs `completions` into rows; `owners[i]` is the prompt of completion i, and completions of one prompt are
    consecutive.

    multiple: the number of rows is rounded up to a multiple of it with empty rows. skip: completions to leave out of
    the rows (`source` still counts their tokens). Raises ValueError for a sequence that exceeds the shape.
    """
    rows = [_Row()]
    offset = 0
    for i, completion in enumerate(completions):
        start, offset = offset, offset + len(completion)
        if skip is not None and skip[i]:
            continue
        prompt = prompts[owners[i]][shape.prefix :]
        if len(prompt) > shape.prompt_tokens or not 0 < len(completion) <= shape.completion_tokens:
            raise ValueError(f"prompt of {len(prompt)} and completion of {len(completion)} tokens do not fit {shape}")
        row = rows[-1]
        shared = shape.share_prompts and row.prompt == owners[i]
        fed = len(completion) - 1 + (0 if shared else len(prompt))
        if len(row.tokens) + fed > shape.length or len(row.targets) + len(completion) > shape.targets:
            rows.append(row := _Row())
            shared = False
        if not shared:
            row.prompt_segment = row.add(list(prompt), shape.prefix, 0)
            row.prompt, row.prompt_end = owners[i], len(row.tokens) - 1
        before = [row.prompt_end, *range(len(row.tokens), len(row.tokens) + len(completion) - 1)]
        row.add(list(completion[:-1]), shape.prefix + len(prompt), row.prompt_segment)
        row.targets += zip(before, completion, range(start, offset), [row.completions] * len(completion), strict=True)
        row.completions += 1
    count = -(-len(rows) // multiple) * multiple
    return _to_arrays(rows + [_Row() for _ in range(count - len(rows))], shape)


def _to_arrays(rows: list[_Row], shape: RowShape) -> PackedRows:
    def fill(values: list[list[int]], width: int, padding: int = 0) -> np.ndarray:
        out = np.full((len(values), width), padding, np.int32)
        for line, value in zip(out, values, strict=True):
            line[: len(value)] = value
        return out

    fed = {name: fill([getattr(r, name) for r in rows], shape.length) for name in _FED}
    if not shape.share_prompts:  # prompt and completion are one segment
        fed["segments"] = np.where(fed["prefixes"] > 0, fed["prefixes"], fed["segments"])
        fed["prefixes"] = np.zeros_like(fed["prefixes"])
    columns = [[list(column) for column in zip(*r.targets, strict=True)] or [[], [], [], []] for r in rows]
    index, targets, source, sequences = (
        fill([c[i] for c in columns], shape.targets, padding) for i, padding in enumerate((0, 0, PADDING, 0))
    )
    return PackedRows(**fed, index=index, targets=targets, source=source, sequences=sequences)


_FED = ("tokens", "positions", "segments", "prefixes")
