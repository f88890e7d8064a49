"""Packing of completions into rows of one static shape, with each prompt computed once for the completions in its row.

A row is `prompt, completion, completion, ..., prompt, completion, ...`; a completion attends to its prompt and itself
(`segment_mask` in models/attention.py), at the positions it would have alone. The common prefix of all prompts (a
template) is in no row: the model computes it once per batch and all rows attend to it. Rows are thus nearly full at any
mix of lengths, one program is compiled, and a prompt's cost is shared. The logits that predict a token are at its
predecessor, which for the first token of every completion is the prompt's last position; hence each target has an
index.

With long completions a shared prompt saves little, and kernels for long rows support only segments that attend to
themselves. Each completion then follows its own copy of the prompt, in one segment with it (`share_prompts` = False),
and goes into the fullest row that has room for it, longest first. Completions that share prompts stay in their order.
"""

from __future__ import annotations

import bisect
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
        if not len(flat):  # rows of padding alone
            return np.full((*self.source.shape, *flat.shape[1:]), padding, flat.dtype)
        laid_out = flat[np.maximum(self.source, 0)]
        laid_out[self.source == PADDING] = padding
        return laid_out


def pack_completions(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    owners: Sequence[int],
    shape: RowShape,
    *,
    multiple: int = 1,
    skip: Sequence[bool] | None = None,
    sampled: Sequence[np.ndarray] | None = None,
) -> PackedRows:
    """Packs `completions` into rows; `owners[i]` is the prompt of completion i, and completions of one prompt are
    consecutive.

    multiple: the number of rows is rounded up to a multiple of it with empty rows. skip: completions to leave out of
    the rows (`source` still counts their tokens). sampled: places of the tokens of each completion that are targets,
    where that is not all of them; `source` then counts targets. Raises ValueError for a sequence that exceeds the
    shape.
    """
    lengths = np.array([len(completion) for completion in completions], np.int64)
    kept = [i for i in range(len(completions)) if skip is None or not skip[i]]
    behind = {owner: np.asarray(prompts[owner][shape.prefix :], np.int32) for owner in {owners[i] for i in kept}}
    for i in kept:
        prompt, length = len(behind[owners[i]]), lengths[i]
        if prompt > shape.prompt_tokens or not 0 < length <= shape.completion_tokens:
            raise ValueError(f"prompt of {prompt} and completion of {length} tokens do not fit {shape}")
    sizes = {i: (len(behind[owners[i]]), int(lengths[i])) for i in kept}
    rows = _fill_in_order(sizes, owners, shape) if shape.share_prompts else _fill_best(sizes, shape)
    count = -(-max(1, len(rows)) // multiple) * multiple
    aimed = [np.arange(length) for length in lengths] if sampled is None else sampled
    return _lay_out(rows, count, behind, completions, owners, aimed, shape)


Sizes = dict[int, tuple[int, int]]  # of the kept completions, by index: tokens of prompt and completion


def _fill_in_order(sizes: Sizes, owners: Sequence[int], shape: RowShape) -> list[list[int]]:
    """Rows of completions in their order; those of one prompt in one row share it."""
    rows: list[list[int]] = []
    fed = aimed = 0
    for i, (prompt, length) in sizes.items():
        shared = bool(rows) and owners[rows[-1][-1]] == owners[i]
        more = length - 1 + (0 if shared else prompt)
        if not rows or fed + more > shape.length or aimed + length > shape.targets:
            rows.append([])
            more, fed, aimed = length - 1 + prompt, 0, 0
        rows[-1].append(i)
        fed, aimed = fed + more, aimed + length
    return rows


def _fill_best(sizes: Sizes, shape: RowShape) -> list[list[int]]:
    """Rows of completions with a prompt each, the longest first, each in the fullest row with room for it."""
    rows: list[list[int]] = []
    free: list[tuple[int, int, int]] = []  # (free inputs, row, free targets), sorted
    for i in sorted(sizes, key=lambda i: -sum(sizes[i])):
        fed, length = sum(sizes[i]) - 1, sizes[i][1]
        at = bisect.bisect_left(free, (fed, 0, 0))
        while at < len(free) and free[at][2] < length:
            at += 1
        left, row, aims = free.pop(at) if at < len(free) else (shape.length, len(rows), shape.targets)
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        bisect.insort(free, (left - fed, row, aims - length))
    return rows


def _lay_out(
    rows: Sequence[Sequence[int]],
    count: int,
    prompts: dict[int, np.ndarray],
    completions: Sequence[Sequence[int]],
    owners: Sequence[int],
    sampled: Sequence[np.ndarray],
    shape: RowShape,
) -> PackedRows:
    """The arrays of `count` rows. prompts: by owner, without the prefix; sampled: places of each one's targets."""
    sizes = np.array([len(each) for each in sampled], np.int64)
    starts = np.cumsum(sizes) - sizes
    fed = {name: np.zeros((count, shape.length), np.int32) for name in ("tokens", "positions", "segments", "prefixes")}
    aimed = {name: np.zeros((count, shape.targets), np.int32) for name in ("index", "targets", "source", "sequences")}
    aimed["source"][:] = PADDING
    places = np.arange(shape.prefix, shape.prefix + shape.length, dtype=np.int32)

    def feed(row: int, at: int, ids: np.ndarray, place: int, segment: int, prefix: int) -> int:
        end = at + len(ids)
        fed["tokens"][row, at:end] = ids
        fed["positions"][row, at:end] = places[place : place + len(ids)]
        fed["segments"][row, at:end] = segment
        fed["prefixes"][row, at:end] = prefix
        return end

    for row, members in enumerate(rows):
        at = aim = segment = prompt_segment = prompt_end = 0
        for number, i in enumerate(members):
            prompt, ids = prompts[owners[i]], np.asarray(completions[i], np.int32)
            if not (shape.share_prompts and number and owners[members[number - 1]] == owners[i]):
                segment = prompt_segment = segment + 1
                at = feed(row, at, prompt, 0, segment, 0)
                prompt_end = at - 1
            targets = sampled[i]
            end = aim + len(targets)
            aimed["index"][row, aim:end] = np.where(targets == 0, prompt_end, at - 1 + targets)
            aimed["targets"][row, aim:end] = ids[targets]
            aimed["source"][row, aim:end] = np.arange(starts[i], starts[i] + len(targets))
            aimed["sequences"][row, aim:end] = number
            prefix = 0  # prompt and completion are one segment, unless others share the prompt
            if shape.share_prompts:
                segment, prefix = segment + 1, prompt_segment
            at, aim = feed(row, at, ids[:-1], len(prompt), segment, prefix), end
    return PackedRows(**fed, **aimed)
