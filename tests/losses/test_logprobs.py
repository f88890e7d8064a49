"""Log-probs and entropy against float64 numpy, their fused gradient against autodiff, chunks against the whole."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses.logprobs import gather_positions, score_logits, token_logprobs

B, R, D, V = 3, 6, 5, 11


def draw(scale: float = 1.0) -> tuple[Any, Any, Any]:
    """Hidden states [B, R, D], a head [D, V], targets [B, R]."""
    random = np.random.default_rng(0)
    hidden, head = random.normal(size=(B, R, D)), random.normal(size=(D, V))
    return hidden.astype(np.float32), (head * scale).astype(np.float32), random.integers(0, V, (B, R))


def score_naively(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(log-prob of the targets, entropy) in float64."""
    logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    chosen = np.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]
    return chosen, -(np.exp(logprobs) * logprobs).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [0, 2, 6, 100])
def test_equals_the_formula(temperature: float, chunk: int) -> None:
    hidden, head, targets = draw()
    score = jax.jit(
        lambda hidden: token_logprobs(hidden, targets, lambda x: x @ head, temperature=temperature, chunk=chunk)
    )
    logits = hidden.astype(np.float64) @ head.astype(np.float64) / temperature
    for found, expected in zip(score(hidden), score_naively(logits, targets), strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


def test_scores_are_float32_where_the_head_computes_in_bfloat16() -> None:
    hidden, head, targets = draw()
    low = lambda x: x.astype(jnp.bfloat16) @ head.astype(jnp.bfloat16)
    found = jax.jit(lambda hidden: token_logprobs(hidden, targets, low))(hidden)
    logits = np.asarray(jax.jit(low)(hidden), np.float64)
    for value, expected in zip(found, score_naively(logits, targets), strict=True):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected, rtol=0, atol=5e-6)


def test_chunks_give_the_gradient_of_the_whole() -> None:
    hidden, head, targets = draw()
    probe = np.random.default_rng(1).normal(size=(2, B, R)).astype(np.float32)

    def gradient(chunk: int) -> tuple[jax.Array, jax.Array]:
        def loss(hidden: jax.Array, head: jax.Array) -> jax.Array:
            logprobs, entropy = token_logprobs(hidden, targets, lambda x: x @ head, temperature=0.7, chunk=chunk)
            return (probe[0] * logprobs + probe[1] * entropy).sum()

        return jax.jit(jax.grad(loss, (0, 1)))(hidden, head)

    for found, expected in zip(gradient(3), gradient(0), strict=True):
        assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


def test_a_chunk_must_divide() -> None:
    hidden, head, targets = draw()
    with pytest.raises(ValueError, match="chunk 4 does not divide the 6 targets"):
        token_logprobs(hidden, targets, lambda x: x @ head, chunk=4)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.3, -2.0)])
def test_fused_gradient_is_that_of_autodiff(weights: tuple[float, float]) -> None:
    hidden, head, targets = draw()
    logits = hidden @ head * 3
    probe = np.random.default_rng(1).normal(size=(2, B, R)).astype(np.float32) * np.reshape(weights, (2, 1, 1))

    def theirs(logits: jax.Array) -> jax.Array:
        logprobs = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]
        return (probe[0] * chosen - probe[1] * (jnp.exp(logprobs) * logprobs).sum(-1)).sum()

    def ours(logits: jax.Array) -> jax.Array:
        logprobs, entropy = score_logits(logits, jnp.asarray(targets))
        return (probe[0] * logprobs + probe[1] * entropy).sum()

    found, expected = jax.jit(jax.grad(ours))(logits), jax.jit(jax.grad(theirs))(logits)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
    np.testing.assert_allclose(np.asarray(found).sum(-1), 0, atol=1e-4)  # a shift of all logits changes nothing


def test_huge_and_lopsided_logits_stay_finite() -> None:
    """Near 1e4, float32 keeps three decimals."""
    logits = jnp.asarray([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [88.0, 89.0, 90.0]])
    targets = jnp.asarray([1, 0, 2])
    total = lambda logits: jnp.stack(score_logits(logits, targets)).sum()
    (value, entropy), gradient = jax.jit(lambda logits: (score_logits(logits, targets), jax.grad(total)(logits)))(
        logits
    )
    expected, expected_entropy = score_naively(np.asarray(logits, np.float64), np.asarray(targets))
    np.testing.assert_allclose(value, expected, atol=2e-3)
    np.testing.assert_allclose(entropy[1:], expected_entropy[1:], atol=2e-3)
    assert np.isfinite(entropy).all() and np.isfinite(gradient).all()


def test_positions_are_gathered_row_by_row() -> None:
    hidden = np.arange(24.0).reshape(2, 4, 3)
    index = np.array([[3, 0, 0], [1, 1, 2]])
    found = gather_positions(jnp.asarray(hidden), jnp.asarray(index))
    np.testing.assert_array_equal(found, np.stack([hidden[0, index[0]], hidden[1, index[1]]]))


def test_targets_of_another_shape_are_refused() -> None:
    hidden, head, targets = draw()
    with pytest.raises(AssertionError, match=r"all arrays must begin with the same \[B, R\]"):
        token_logprobs(hidden, targets[:, 1:], lambda x: x @ head)
    with pytest.raises(AssertionError, match=r"targets must be \[...\] for logits \[..., V\]"):
        score_logits(jnp.asarray(hidden @ head), jnp.asarray(targets[:1]))
    with pytest.raises(AssertionError, match="states and index must have the same rows"):
        gather_positions(jnp.asarray(hidden), jnp.asarray(targets[:1]))
