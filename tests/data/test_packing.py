"""Packed rows say the same as the completions they hold: read back token by token, by the rule of the mask alone."""

from collections.abc import Sequence

import numpy as np
import pytest

from r1jax.data.packing import PADDING, PackedRows, RowShape, pack_completions

SHAPE = RowShape(prompt_tokens=7, completion_tokens=5, completions=3)


def draw(seed: int, prefix: Sequence[int] = (), groups: int = 6, longest: int = 5) -> tuple[list, list, list[int]]:
    """(prompts, completions, owners) of random lengths, the longest possible ones among them."""
    random = np.random.default_rng(seed)
    ids = lambda low, high: tuple(random.integers(100, 1000, random.integers(low, high + 1)).tolist())
    prompts = [(*prefix, *ids(1, 7)) for _ in range(groups - 1)] + [(*prefix, *ids(7, 7))]
    owners = np.repeat(np.arange(groups), random.integers(1, 6, groups)).tolist()
    completions = [ids(1, longest) for _ in owners]
    completions[0] = ids(longest, longest)
    return prompts, completions, owners


def read_back(packed: PackedRows, row: int, target: int) -> tuple[list[int], list[int]]:
    """(tokens, positions) that the state predicting this target sees, in order."""
    at = packed.index[row, target]
    segments = packed.segments[row]
    seen = [
        s
        for s in range(at + 1)
        if segments[s] != 0 and segments[s] in (segments[at], packed.prefixes[row, at])  # as `segment_mask` has it
    ]
    return packed.tokens[row, seen].tolist(), packed.positions[row, seen].tolist()


def check(
    prompts: list, completions: list, owners: list[int], shape: RowShape, packed: PackedRows, kept: list[bool]
) -> None:
    """Every kept token is a target exactly once, and is predicted from its prompt and what came before it."""
    flat = [(i, k) for i, completion in enumerate(completions) for k in range(len(completion))]
    found = []
    for row, target in zip(*np.nonzero(packed.source != PADDING), strict=True):
        i, k = flat[packed.source[row, target]]
        found.append((i, k))
        tokens, positions = read_back(packed, row, target)
        assert packed.targets[row, target] == completions[i][k]
        assert tokens == [*prompts[owners[i]][shape.prefix :], *completions[i][:k]]
        assert positions == list(range(shape.prefix, shape.prefix + len(tokens)))
    assert sorted(found) == [(i, k) for i, k in flat if kept[i]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("prefix", [(), (1, 2, 3)])
def test_every_token_is_predicted_from_its_prompt_and_its_past(seed: int, prefix: tuple[int, ...]) -> None:
    prompts, completions, owners = draw(seed, prefix)
    shape = RowShape(7, 5, 3, prefix=len(prefix))
    packed = pack_completions(prompts, completions, owners, shape)
    check(prompts, completions, owners, shape, packed, [True] * len(completions))


@pytest.mark.parametrize("seed", range(5))
def test_prompts_that_are_not_shared_are_one_segment_with_their_completion(seed: int) -> None:
    prompts, completions, owners = draw(seed)
    shape = RowShape(7, 5, 3, share_prompts=False)
    packed = pack_completions(prompts, completions, owners, shape)
    assert shape.length == packed.tokens.shape[1] == 3 * (7 + 5) and not packed.prefixes.any()
    check(prompts, completions, owners, shape, packed, [True] * len(completions))


@pytest.mark.parametrize("mean", [600, 1500, 3000, 5000])
def test_long_completions_fill_their_rows(mean: int) -> None:
    """Whatever their mean length, nine places in ten are used (rows of the pod configs)."""
    random = np.random.default_rng(mean)
    lengths = random.gamma(2, mean / 2, 1024).clip(1, 7168).astype(int)
    completions = [np.ones(length, np.int32) for length in lengths]
    prompts = [np.ones(length, np.int32) for length in random.integers(50, 300, 64)]
    shape = RowShape(1024, 7168, 1, share_prompts=False)
    packed = pack_completions(prompts, completions, np.repeat(np.arange(64), 16).tolist(), shape)
    assert packed.counts[0] >= 0.88 * packed.tokens.size


def test_pairs_of_a_full_row() -> None:
    """The triangle of a prompt once, with a prefix before it, and of every completion with all that it sees."""
    assert RowShape(7, 5, 3, prefix=2).pairs == 7 * 2 + 7**2 / 2 + 3 * (5 * 9 + 5**2 / 2)
    assert RowShape(7, 5, 3, share_prompts=False).pairs == pytest.approx(3 * (7 + 5) ** 2 / 2)


def test_rows_have_one_static_shape_and_whole_numbers() -> None:
    assert (SHAPE.targets, SHAPE.length) == (15, 22)
    packed = pack_completions(*draw(0), SHAPE)
    for name in ("tokens", "positions", "segments", "prefixes"):
        assert getattr(packed, name).shape == (len(packed.tokens), 22) and getattr(packed, name).dtype == np.int32
    for name in ("index", "targets", "source"):
        assert getattr(packed, name).shape == (len(packed.tokens), 15) and getattr(packed, name).dtype == np.int32
    assert packed.index.min() >= 0 and packed.index.max() < 22


@pytest.mark.parametrize("seed", range(3))
def test_skipped_completions_are_nowhere_and_the_count_goes_on(seed: int) -> None:
    prompts, completions, owners = draw(seed)
    skip = [(owner + seed) % 2 == 0 for owner in owners]
    packed = pack_completions(prompts, completions, owners, SHAPE, skip=skip)
    check(prompts, completions, owners, SHAPE, packed, [not s for s in skip])
    assert len(packed.tokens) <= len(pack_completions(prompts, completions, owners, SHAPE).tokens)


def test_a_row_is_there_though_all_is_skipped() -> None:
    prompts, completions, owners = draw(0)
    packed = pack_completions(prompts, completions, owners, SHAPE, skip=[True] * len(owners), multiple=4)
    assert len(packed.tokens) == 4
    assert (packed.source == PADDING).all() and not packed.segments.any() and not packed.tokens.any()


@pytest.mark.parametrize("multiple", [1, 2, 3, 8])
def test_empty_rows_fill_up_to_the_multiple(multiple: int) -> None:
    prompts, completions, owners = draw(1)
    plain, filled = (pack_completions(prompts, completions, owners, SHAPE, multiple=m) for m in (1, multiple))
    count = len(plain.tokens)
    assert len(filled.tokens) == -(-count // multiple) * multiple
    for name, value in vars(plain).items():
        np.testing.assert_array_equal(getattr(filled, name)[:count], value)
    assert (filled.source[count:] == PADDING).all() and not filled.segments[count:].any()


@pytest.mark.parametrize(
    ("prompt", "completion"), [((1,) * 8, (1,)), ((1,), (1,) * 6), ((1,), ())], ids=["prompt", "completion", "empty"]
)
def test_what_does_not_fit_the_shape_is_refused(prompt: tuple[int, ...], completion: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"prompt of {len(prompt)} and completion of {len(completion)} tokens"):
        pack_completions([prompt], [completion], [0], SHAPE)


def test_the_longest_fill_a_row_exactly() -> None:
    """The worst case that `micro_batch_size` is counted in: one prompt, `completions` full completions a row."""
    packed = pack_completions([(1,) * 7], [(2,) * 5] * 6, [0] * 6, SHAPE)
    assert len(packed.tokens) == 2 and (packed.source >= 0).all()
    assert (packed.segments > 0).sum(1).tolist() == [7 + 3 * 4] * 2  # a completion's last token is not fed


def test_short_completions_fill_rows_and_a_prompt_stands_once_a_row() -> None:
    prompts, owners = [(1, 2), (3, 4, 5)], [0] * 15 + [1] * 15
    completions = [(9,) * (1 + i % 2) for i in range(30)]
    packed = pack_completions(prompts, completions, owners, SHAPE)
    targets = (packed.source >= 0).sum(1)
    assert len(packed.tokens) == 3 == -(-sum(map(len, completions)) // SHAPE.targets)
    assert targets.tolist() == [15, 15, 15]
    for row in packed.tokens.tolist():
        assert row.count(1) <= 1 and row.count(3) <= 1
    unshared = sum(len(prompts[owner]) + len(c) for owner, c in zip(owners, completions, strict=True))
    assert (packed.segments > 0).sum() < unshared / 3


def test_values_per_token_are_laid_out_beside_their_targets() -> None:
    prompts, completions, owners = draw(2)
    packed = pack_completions(prompts, completions, owners, SHAPE, multiple=4)
    ids = np.concatenate([np.array(completion) for completion in completions])
    np.testing.assert_array_equal(packed.lay_out(ids), packed.targets)
    values = np.arange(len(ids), dtype=np.float32) + 1
    laid_out = packed.lay_out(values)
    assert laid_out.dtype == np.float32 and (laid_out[packed.source == PADDING] == 0).all()
    np.testing.assert_array_equal(np.sort(laid_out[laid_out > 0]), values)
