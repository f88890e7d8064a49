"""Softmax attention of gathered heads: M = (N / K) * T query rows attend to the S keys of their kv head.

The hand-written backward pass stores the softmax weights: autodiff would also store scores and exponentials, and use
the row sums that XLA:CPU runs slowest (core/reduction.py). Softmax and sums are in float32.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from r1jax.core.reduction import row_sums


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend_heads(
    q_BKMH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, bias_BTS: jax.Array, scale: float
) -> jax.Array:
    """softmax(q k scale + bias) v -> [B, K, M, H], H the width of the values. The bias [B, T, S] of a token applies to
    each of its M / T query rows.
    """
    return _attend_forward(q_BKMH, k_BKSH, v_BKSH, bias_BTS, scale)[0]


def _attend_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, bias_BTS: jax.Array, scale: float
) -> tuple[jax.Array, tuple]:
    B, K, M, _ = q.shape
    T, S = bias_BTS.shape[1:]
    scores = jnp.einsum("BKMH,BKSH->BKMS", q, k, preferred_element_type=jnp.float32) * scale
    scores = scores.reshape(B, K, M // T, T, S) + bias_BTS[:, None, None]
    powers = jnp.exp(scores - scores.max(-1, keepdims=True))
    weights = (powers / row_sums(powers)[..., None]).reshape(B, K, M, S).astype(v.dtype)
    out = jnp.einsum("BKMS,BKSH->BKMH", weights, v)
    return out, (q, k, v, weights, out)


def _attend_backward(scale: float, saved: tuple, grad: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, weights, out = saved
    grad_v = jnp.einsum("BKMS,BKMH->BKSH", weights, grad)
    grad_weights = jnp.einsum("BKMH,BKSH->BKMS", grad, v, preferred_element_type=jnp.float32)
    mean = row_sums(grad.astype(jnp.float32) * out)[..., None]
    grad_scores = (weights * (grad_weights - mean) * scale).astype(q.dtype)
    grad_q = jnp.einsum("BKMS,BKSH->BKMH", grad_scores, k)
    return grad_q, jnp.einsum("BKMS,BKMH->BKSH", grad_scores, q), grad_v, None


attend_heads.defvjp(_attend_forward, _attend_backward)


def attend_heads_shaped(
    q_BKMH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    bias_BTS: jax.Array,
    scale: float,
    cap: float = 0.0,
    sinks_N: jax.Array | None = None,
) -> jax.Array:
    """`attend_heads` with scores softly capped at +-`cap` before the bias (Gemma 2, 2408.00118; 0: not), and with a
    learned score for each of the N query heads that takes its share of the softmax and gives nothing (a sink, gpt-oss,
    2508.10925). Its gradient is autodiff's.
    """
    B, K, M, _ = q_BKMH.shape
    T, S = bias_BTS.shape[1:]
    scores = jnp.einsum("BKMH,BKSH->BKMS", q_BKMH, k_BKSH, preferred_element_type=jnp.float32) * scale
    scores = cap * jnp.tanh(scores / cap) if cap else scores
    scores = scores.reshape(B, K, M // T, T, S) + bias_BTS[:, None, None]
    peak = scores.max(-1, keepdims=True)
    if sinks_N is not None:
        sinks = sinks_N.astype(jnp.float32).reshape(1, K, M // T, 1, 1)
        peak = jnp.maximum(peak, sinks)
    peak = jax.lax.stop_gradient(peak)
    powers = jnp.exp(scores - peak)
    total = powers.sum(-1, keepdims=True)
    if sinks_N is not None:
        total = total + jnp.exp(sinks - peak)
    weights = (powers / total).reshape(B, K, M, S).astype(v_BKSH.dtype)
    return jnp.einsum("BKMS,BKSH->BKMH", weights, v_BKSH)


def attend_heads_prefixed(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias_BTS: jax.Array,
    scale: float,
    prefix_k_KPH: jax.Array,
    prefix_v_KPH: jax.Array,
) -> jax.Array:
    """`attend_heads` with a prefix [K, P, H] before the keys of each row, which all rows attend to in one matrix
    product per kv head. For decoding; its gradient is autodiff's.
    """
    B, K, M, H = q.shape
    T, S = bias_BTS.shape[1:]
    own = jnp.einsum("BKMH,BKSH->BKMS", q, k, preferred_element_type=jnp.float32) * scale
    own = (own.reshape(B, K, M // T, T, S) + bias_BTS[:, None, None]).reshape(B, K, M, S)
    q_KRH = q.transpose(1, 0, 2, 3).reshape(K, B * M, H)
    shared = jnp.einsum("KRH,KPH->KRP", q_KRH, prefix_k_KPH, preferred_element_type=jnp.float32) * scale
    split = lambda x: x.reshape(K, B, M, -1).transpose(1, 0, 2, 3)
    peak = jnp.maximum(own.max(-1, keepdims=True), split(shared.max(-1, keepdims=True)))
    own = jnp.exp(own - peak)
    shared = jnp.exp(shared - peak.transpose(1, 0, 2, 3).reshape(K, B * M, 1))
    total = own.sum(-1, keepdims=True) + split(shared.sum(-1, keepdims=True))
    out = jnp.einsum("BKMS,BKSH->BKMH", own.astype(v.dtype), v)
    out = out + split(jnp.einsum("KRP,KPH->KRH", shared.astype(v.dtype), prefix_v_KPH))
    return (out / total).astype(v.dtype)
