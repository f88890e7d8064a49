"""Cross entropy of tokens ahead, against sums written out token by token in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses.prediction import mtp_loss, next_token_loss, shift_targets

SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 0], [3, 3, 5, 5, 5, 5, 5, 5]])
WEIGHTS = np.array([[1, 0, 1, 1, 1, 1, 0, 1], [1, 1, 1, 0.5, 1, 1, 2, 1]], np.float32)


def draw() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states [2, 8, 5], a head [5, 11], tokens [2, 8]."""
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    return normal(2, 8, 5), normal(5, 11), random.integers(0, 11, (2, 8))


def add_up(hidden: np.ndarray, head: np.ndarray, tokens: np.ndarray, ahead: int) -> tuple[float, float]:
    """(sum of -log p, weight) over all pairs of one segment that lie `ahead` apart."""
    logits = hidden.astype(np.float64) @ head.astype(np.float64)
    logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    total = weight = 0.0
    for b, t in np.ndindex(tokens.shape):
        if (to := t + ahead) < tokens.shape[1] and SEGMENTS[b, t] == SEGMENTS[b, to] != 0:
            total -= WEIGHTS[b, to] * logprobs[b, t, tokens[b, to]]
            weight += WEIGHTS[b, to]
    return total, weight


@pytest.mark.parametrize("chunk", [0, 4])
@pytest.mark.parametrize("ahead", [1, 2, 3, 9])
def test_only_pairs_of_one_segment_count(ahead: int, chunk: int) -> None:
    hidden, head, tokens = draw()
    found = jax.jit(
        lambda hidden: next_token_loss(
            hidden, tokens, lambda x: x @ head, weights=WEIGHTS, segment_ids=SEGMENTS, ahead=ahead, chunk=chunk
        )
    )(hidden)
    np.testing.assert_allclose(found, add_up(hidden, head, tokens, ahead), rtol=1e-5, atol=1e-6)


def test_whole_rows_by_default() -> None:
    hidden, head, tokens = draw()
    total, weight = next_token_loss(jnp.asarray(hidden), jnp.asarray(tokens), lambda x: x @ head)
    logprobs = jax.nn.log_softmax(hidden @ head)
    expected = -np.take_along_axis(np.asarray(logprobs)[:, :-1], tokens[:, 1:, None], axis=-1).sum()
    assert (float(total), float(weight)) == (pytest.approx(expected, rel=1e-5), 14)


def test_depths_are_averaged_each_one_further_ahead() -> None:
    hidden, head, tokens = draw()
    depths = [hidden, 2 * hidden]
    found = mtp_loss(depths, tokens, lambda x: x @ head, weights=WEIGHTS, segment_ids=SEGMENTS)
    expected = [add_up(depth, head, tokens, ahead)[0] for ahead, depth in enumerate(depths, start=2)]
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(mtp_loss([], tokens, lambda x: x @ head)) == 0


def test_what_predicts_nothing_has_no_gradient_and_no_say_whatever_it_holds() -> None:
    hidden, head, tokens = draw()
    _, weights = shift_targets(jnp.asarray(tokens), jnp.asarray(WEIGHTS), jnp.asarray(SEGMENTS), 1)
    idle = np.asarray(weights) == 0
    loss = lambda hidden: next_token_loss(hidden, tokens, lambda x: x @ head, weights=WEIGHTS, segment_ids=SEGMENTS)[0]
    expected = float(loss(jnp.asarray(hidden)))
    hidden[idle] = 1e30
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(hidden))
    assert float(value) == pytest.approx(expected)
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[idle].any() and np.asarray(gradient)[~idle].any()
