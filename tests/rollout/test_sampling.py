"""One token from logits: the choice of sampling written down plainly, exact frequencies, never a filtered token."""

import itertools

import jax
import numpy as np
import pytest

from r1jax.core.structs import Sampling
from r1jax.rollout import sampling as module
from r1jax.rollout.sampling import SamplingArrays, sample
from tests.rollout import naive

ROUNDING = 2e-6  # of float32 cumulative sums, as a share of all mass
VOCAB = 1000  # not a multiple of the block, and more than the window
BATCH = 500
compiled = jax.jit(sample, static_argnames="filtered")


def run(logits_BV: np.ndarray, uniform_B: np.ndarray, rows: list[Sampling]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, log-probs) [B], in batches of one size, so that a vocabulary is compiled once."""
    filtered = any(row.top_k or row.top_p < 1 or row.min_p for row in rows)
    count = len(rows)
    rows = [*rows, *[Sampling()] * (-count % BATCH)]
    logits_BV = np.pad(logits_BV.astype(np.float32), ((0, len(rows) - count), (0, 0)))
    uniform_B = np.pad(uniform_B.astype(np.float32), (0, len(rows) - count))
    tokens, logprobs = [], []
    for part in (slice(start, start + BATCH) for start in range(0, len(rows), BATCH)):
        knobs = SamplingArrays(
            np.array([row.temperature for row in rows[part]], np.float32),
            np.array([row.top_k for row in rows[part]], np.int32),
            np.array([row.top_p for row in rows[part]], np.float32),
            np.array([row.min_p for row in rows[part]], np.float32),
        )
        token, logprob = compiled(logits_BV[part], uniform_B[part], knobs, filtered=filtered)
        assert token.dtype == np.int32 and logprob.dtype == np.float32
        tokens.append(token)
        logprobs.append(logprob)
    return np.concatenate(tokens)[:count], np.concatenate(logprobs)[:count]


def draw_grid(logits_V: np.ndarray, row: Sampling, count: int) -> np.ndarray:
    """How often each token is drawn over a grid of `count` uniforms."""
    tokens, _ = run(np.tile(logits_V, (count, 1)), (np.arange(count) + 0.5) / count, [row] * count)
    return np.bincount(tokens, minlength=len(logits_V))


FILTERS = {
    "none": Sampling(),
    "warm": Sampling(temperature=1.7),
    "cold": Sampling(temperature=0.3),
    "top_k": Sampling(top_k=5),
    "top_k_of_all": Sampling(top_k=10_000),
    "top_k_1": Sampling(top_k=1),
    "top_p": Sampling(top_p=0.7),
    "top_p_tiny": Sampling(top_p=1e-6),
    "min_p": Sampling(min_p=0.2),
    "top_k_then_top_p": Sampling(temperature=1.3, top_k=20, top_p=0.6),
    "all": Sampling(temperature=0.8, top_k=30, top_p=0.9, min_p=0.05),
    "greedy": Sampling(temperature=0.0, top_k=3, top_p=0.5),
}


@pytest.mark.parametrize("vocab", [7, 256, 304, VOCAB])
def test_each_row_as_sampling_by_itself(vocab: int):
    """One batch of all filters mixed; vocabularies of less than a block, a whole one, and not a multiple of it."""
    generator = np.random.default_rng(vocab)
    rows = [row for row in FILTERS.values() for _ in range(40)]
    logits, uniform = (
        generator.normal(0, 2, (len(rows), vocab)).astype(np.float32),
        generator.random(len(rows), np.float32),
    )
    tokens, logprobs = run(logits, uniform, rows)
    for line, u, row, token, logprob in zip(logits, uniform, rows, tokens, logprobs, strict=True):
        assert logprob == pytest.approx(naive.scaled(line, row)[token], abs=1e-5)
        if row.temperature == 0:
            assert token == line.argmax()
            continue
        p = naive.kept_probabilities(line, row)
        assert p[token] > 0
        assert p[:token].sum() - ROUNDING <= u <= p[: token + 1].sum() + ROUNDING


@pytest.mark.parametrize("name", ["none", "warm", "top_k", "top_p", "all"])
def test_frequencies_are_the_probabilities_exact_to_the_grid(name: str):
    """Inverse CDF over a grid of N uniforms: no token is drawn a whole time more or less often than N p."""
    logits, count = np.random.default_rng(3).normal(0, 1.5, VOCAB), 4000
    p = naive.kept_probabilities(logits, FILTERS[name])
    counts = draw_grid(logits, FILTERS[name], count)
    assert np.abs(counts - count * p).max() < 1 + count * ROUNDING
    assert not counts[p == 0].any()


@pytest.mark.parametrize(
    "row", [Sampling(top_p=0.9), Sampling(top_k=700), Sampling(top_k=700, top_p=0.8), FILTERS["none"]]
)
def test_more_tokens_kept_than_the_window_holds(row: Sampling):
    """A flat distribution: the largest 512 do not reach top-p or top-k, so all are sorted."""
    logits = np.random.default_rng(4).normal(0, 0.1, VOCAB)
    p = naive.kept_probabilities(logits, row)
    kept = p > 0
    assert kept.sum() > module._WINDOW
    counts = draw_grid(logits, row, 4000)
    assert ((counts > 0) == kept).all()


def test_a_row_that_needs_the_full_sort_changes_no_other():
    generator = np.random.default_rng(5)
    rows = [Sampling(top_k=8), Sampling(top_p=0.5), Sampling(min_p=0.3), Sampling()] * 50
    logits, uniform = generator.normal(0, 3, (len(rows), VOCAB)), generator.random(len(rows))
    alone = run(logits, uniform, rows)
    flat = np.concatenate([logits, np.zeros((1, VOCAB))])
    beside = run(flat, np.append(uniform, 0.5), [*rows, Sampling(top_p=0.95)])
    for one, other in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(one, other[:-1])


def test_unfiltered_rows_do_not_depend_on_filtered_ones_beside_them():
    generator = np.random.default_rng(6)
    logits, uniform = generator.normal(0, 2, (64, VOCAB)), generator.random(64)
    without = run(logits, uniform, [Sampling()] * 64)
    beside = run(logits, uniform, [Sampling(), Sampling(top_k=4)] * 32)
    for one, other in zip(without, beside, strict=True):
        np.testing.assert_array_equal(one[::2], other[::2])


def test_tokens_that_tie_with_the_last_one_kept_are_kept_too():
    logits = np.full(VOCAB, -9.0)
    logits[[10, 270]] = 3.0
    logits[[20, 30, 280]] = 1.0
    for row in (Sampling(top_k=3), Sampling(top_k=4), Sampling(top_p=0.86)):  # two 3.0s have 0.85 of the mass
        assert set(np.flatnonzero(draw_grid(logits, row, 1000))) == {10, 20, 30, 270, 280}
    assert set(np.flatnonzero(draw_grid(logits, Sampling(top_k=1), 1000))) == {10, 270}
    greedy, _ = run(logits[None], np.array([0.9]), [Sampling(temperature=0)])
    assert greedy[0] == 10


def test_the_ends_of_the_uniform_interval():
    """0 gives the first token with mass, the largest float below 1 the last one, also across empty blocks."""
    logits = np.full(VOCAB, -np.inf)
    logits[[300, 310, 700]] = 0.0
    ends = np.array([0.0, np.nextafter(np.float32(1), np.float32(0))])
    for row in (Sampling(), Sampling(top_k=3)):
        tokens, logprobs = run(np.tile(logits, (2, 1)), ends, [row] * 2)
        assert tokens.tolist() == [300, 700]
        np.testing.assert_allclose(logprobs, -np.log(3), atol=1e-6)


def test_rounding_never_leads_to_a_token_without_mass():
    """Uniforms within a few units of rounding around the border of two blocks, for many splits of the mass."""
    generator = np.random.default_rng(7)
    shares = generator.uniform(0.05, 0.95, 400).astype(np.float32)
    nudges = np.arange(-6, 7)
    logits, uniform = [], []
    for share, nudge in itertools.product(shares, nudges):
        line = np.full(VOCAB, -30.0)
        line[5], line[400], line[401] = np.log(share), np.log(1 - share) - 1, np.log(1 - share) + np.log(1 - np.exp(-1))
        logits.append(line)
        uniform.append(share + nudge * np.spacing(share))
    tokens, _ = run(np.array(logits), np.array(uniform), [Sampling(top_k=3)] * len(logits))
    assert set(tokens) <= {5, 400, 401}
