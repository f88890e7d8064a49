"""KL divergences between a student's and a teacher's next-token distributions, per position, in nats.

Reverse KL, KL(student || teacher), is measured on the student's own samples (on-policy distillation: Agarwal et al.
2023, 2306.13649; Gu et al. 2023, 2306.08543) and is mode-seeking: the student needs to match only what it can
represent. The sampled estimate needs the log-probs of the sampled tokens only; the sum over the vocabulary has less
variance. Forward KL, KL(teacher || student), is measured on given texts and is mode-covering.

No gradient reaches the teacher. Left out: sums, weights and denominators, which are the caller's.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from r1jax.losses.policy import LOG_RATIO_LIMIT

_ONE_SHAPE = "student and teacher must be scored at the same positions, over one vocabulary"


def reverse_kl(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """KL(student || teacher) of float32 logits [..., V] -> [...]."""
    chex.assert_equal_shape([student, teacher], custom_message=_ONE_SHAPE)
    logprobs, others = jax.nn.log_softmax(student), jax.lax.stop_gradient(jax.nn.log_softmax(teacher))
    return (jnp.exp(logprobs) * (logprobs - others)).sum(-1)


def forward_kl(student: jax.Array, teacher: jax.Array, *, top_k: int = 0) -> jax.Array:
    """KL(teacher || student) of float32 logits [..., V] -> [...].

    top_k: keep the teacher's k most likely tokens and merge all others into one bucket. This is a lower bound of the
    full divergence (top_k=0), for teachers of which only k log-probs are stored.
    """
    chex.assert_equal_shape([student, teacher], custom_message=_ONE_SHAPE)
    logprobs, others = jax.nn.log_softmax(student), jax.lax.stop_gradient(jax.nn.log_softmax(teacher))
    if not top_k or top_k >= teacher.shape[-1]:
        return (jnp.exp(others) * (others - logprobs)).sum(-1)
    others, chosen = jax.lax.top_k(others, top_k)
    logprobs = jnp.take_along_axis(logprobs, chosen, axis=-1)
    return (jnp.exp(others) * (others - logprobs)).sum(-1) + _kl_of_rest(others, logprobs)


def _kl_of_rest(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """Term of the bucket that holds all tokens outside the top k; log-probs [..., k] of the top k are given."""
    rest = lambda logprobs: jnp.log(jnp.clip(1.0 - jnp.exp(logprobs).sum(-1), 1e-6, 1.0))
    others = rest(teacher)
    return jnp.exp(others) * (others - rest(student))


def sampled_reverse_kl(logprobs: jax.Array, teacher_logprobs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Surrogate loss and KL estimate per token, from the log-probs of sampled tokens.

    The estimate is log p_student - log p_teacher; its mean over the student's samples is the reverse KL. The surrogate
    is a policy-gradient loss whose advantage at each token is the negative estimate; its value equals the estimate.
    """
    chex.assert_equal_shape([logprobs, teacher_logprobs], custom_message=_ONE_SHAPE)
    estimate = jax.lax.stop_gradient(logprobs - teacher_logprobs)
    log_ratio = jnp.clip(logprobs - jax.lax.stop_gradient(logprobs), -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return jnp.exp(log_ratio) * estimate, estimate
