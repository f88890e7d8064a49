"""Divergences between two distributions, against sums in float64, and the gradient of the sampled estimate."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses.divergences import forward_kl, reverse_kl, sampled_reverse_kl

RANDOM = np.random.default_rng(0)
STUDENT, TEACHER = (RANDOM.normal(0, 2, (3, 4, 9)).astype(np.float32) for _ in range(2))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def kl(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (np.exp(one) * (one - other)).sum(-1)


def test_both_directions_are_the_sums_over_the_vocabulary() -> None:
    student, teacher = log_softmax(STUDENT), log_softmax(TEACHER)
    np.testing.assert_allclose(reverse_kl(STUDENT, TEACHER), kl(student, teacher), rtol=1e-5)
    np.testing.assert_allclose(forward_kl(STUDENT, TEACHER), kl(teacher, student), rtol=1e-5)
    np.testing.assert_allclose(forward_kl(STUDENT, TEACHER, top_k=9), kl(teacher, student), rtol=1e-5)
    np.testing.assert_allclose(reverse_kl(STUDENT, STUDENT), 0, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 4, 8])
def test_the_tokens_behind_the_first_k_are_one_bucket(top_k: int) -> None:
    student, teacher = log_softmax(STUDENT), log_softmax(TEACHER)
    order = np.argsort(-teacher, axis=-1)[..., :top_k]
    kept = [np.take_along_axis(logprobs, order, axis=-1) for logprobs in (teacher, student)]
    whole = [np.concatenate([x, np.log(1 - np.exp(x).sum(-1, keepdims=True))], -1) for x in kept]
    found = np.asarray(forward_kl(STUDENT, TEACHER, top_k=top_k))
    np.testing.assert_allclose(found, kl(*whole), rtol=1e-3, atol=1e-5)
    assert (found <= kl(teacher, student) + 1e-5).all()


def test_teachers_get_no_gradient() -> None:
    for divergence in (reverse_kl, forward_kl, lambda a, b: forward_kl(a, b, top_k=3)):
        student, teacher = jax.grad(lambda *x, f=divergence: f(*x).sum(), (0, 1))(STUDENT, TEACHER)
        assert np.asarray(student).any() and not np.asarray(teacher).any()


def test_the_sampled_estimate_has_the_divergence_and_its_gradient_as_means() -> None:
    """Over all tokens, each as often as the student says it."""
    student, teacher = jnp.asarray(STUDENT[0, 0]), jnp.asarray(TEACHER[0, 0])
    shares = jax.nn.softmax(student)

    def mean(logits: jax.Array) -> jax.Array:
        loss, _ = sampled_reverse_kl(jax.nn.log_softmax(logits), jax.nn.log_softmax(teacher))
        return (jax.lax.stop_gradient(shares) * loss).sum()

    value, gradient = jax.value_and_grad(mean)(student)
    expected, exact = jax.value_and_grad(reverse_kl)(student, teacher)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("divergence", [reverse_kl, forward_kl, sampled_reverse_kl])
def test_student_and_teacher_are_of_one_shape(divergence: Any) -> None:
    with pytest.raises(AssertionError, match="student and teacher must be scored at the same positions"):
        divergence(np.zeros((2, 3), np.float32), np.zeros((1, 3), np.float32))
