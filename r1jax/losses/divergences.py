"""How far a student's next-token distribution is from a teacher's, position by position, in nats.

Reverse KL, KL(student || teacher), is measured where the student itself has been (on-policy distillation: Agarwal et
al. 2023, 2306.13649; Gu et al. 2023, 2306.08543): it asks for a mode of the teacher, and for no more than the student
can hold. By its sampled estimate only the log-probs of the sampled tokens are needed; over the whole vocabulary it has
less noise. Forward KL, KL(teacher || student), is measured on given texts and asks for all that the teacher would say.

Teachers get no gradient. Leaves out: sums, weights and denominators, which are the caller's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r1jax.losses.policy import LOG_RATIO_LIMIT


def reverse_kl(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """KL(student || teacher) of float32 logits [..., V] -> [...]."""
    logprobs, others = jax.nn.log_softmax(student), jax.lax.stop_gradient(jax.nn.log_softmax(teacher))
    return (jnp.exp(logprobs) * (logprobs - others)).sum(-1)


def forward_kl(student: jax.Array, teacher: jax.Array, *, top_k: int = 0) -> jax.Array:
    """KL(teacher || student) of float32 logits [..., V] -> [...].

    top_k: the teacher's k likeliest tokens apart, all others as one bucket: a lower bound of the whole (0), and what
    can be had where only k log-probs of a teacher are kept.
    """
    logprobs, others = jax.nn.log_softmax(student), jax.lax.stop_gradient(jax.nn.log_softmax(teacher))
    if not top_k or top_k >= teacher.shape[-1]:
        return (jnp.exp(others) * (others - logprobs)).sum(-1)
    others, chosen = jax.lax.top_k(others, top_k)
    logprobs = jnp.take_along_axis(logprobs, chosen, axis=-1)
    return (jnp.exp(others) * (others - logprobs)).sum(-1) + _kl_of_rest(others, logprobs)


def _kl_of_rest(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """The share of the bucket of all tokens that are not among the k, whose log-probs [..., k] are given."""
    rest = lambda logprobs: jnp.log(jnp.clip(1.0 - jnp.exp(logprobs).sum(-1), 1e-6, 1.0))
    others = rest(teacher)
    return jnp.exp(others) * (others - rest(student))


def sampled_reverse_kl(logprobs: jax.Array, teacher_logprobs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(surrogate loss, estimate) per token from the log-probs of sampled tokens.

    The estimate is log p_student - log p_teacher; its mean over the student's samples is the divergence. The surrogate
    takes its negative as the advantage of that token alone, as in policy gradients; its value is the estimate's.
    """
    estimate = jax.lax.stop_gradient(logprobs - teacher_logprobs)
    log_ratio = jnp.clip(logprobs - jax.lax.stop_gradient(logprobs), -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return jnp.exp(log_ratio) * estimate, estimate
