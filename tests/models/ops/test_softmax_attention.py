"""The written-out gradient of gathered heads against autodiff of the same formula; the prefix against its own keys."""

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.models.ops.softmax_attention import attend_heads, attend_heads_prefixed
from tests.models.toy import assert_close

B, K, T, M, S, H, V = 2, 2, 3, 6, 5, 8, 4  # two query heads a kv head; values narrower than keys


def draw() -> tuple[np.ndarray, ...]:
    """q, k, v and a bias that hides some keys, never a query's first."""
    random = np.random.default_rng(0)
    shapes = (B, K, M, H), (B, K, S, H), (B, K, S, V)
    hidden = random.random((B, T, S)) < 0.3
    hidden[..., 0] = False
    arrays = (random.normal(size=shape).astype(np.float32) for shape in shapes)
    return *arrays, np.where(hidden, -1e30, 0).astype(np.float32)


def formula(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
    """The same with the bias repeated for each query head."""
    scores = jnp.einsum("BKMH,BKSH->BKMS", q, k) * 0.3 + jnp.tile(bias, (1, M // T, 1))[:, None]
    return jnp.einsum("BKMS,BKSH->BKMH", jax.nn.softmax(scores), v)


def test_values_and_gradient_are_those_of_the_formula() -> None:
    *arrays, bias = draw()
    probe = np.random.default_rng(1).normal(size=(B, K, M, V)).astype(np.float32)
    ours = lambda q, k, v: (attend_heads(q, k, v, bias, 0.3) * probe).sum()
    theirs = lambda q, k, v: (formula(q, k, v, bias) * probe).sum()
    found, expected = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*arrays) for f in (ours, theirs))
    assert_close(found, expected)


def test_a_prefix_is_keys_before_those_of_every_row() -> None:
    q, k, v, bias = draw()
    random = np.random.default_rng(2)
    prefix_k, prefix_v = (random.normal(size=(K, 3, width)).astype(np.float32) for width in (H, V))
    whole = [np.concatenate([np.broadcast_to(x, (B, *x.shape)), y], axis=2) for x, y in ((prefix_k, k), (prefix_v, v))]
    expected = attend_heads(q, *whole, np.pad(bias, ((0, 0), (0, 0), (3, 0))), 0.3)
    assert_close(jax.jit(attend_heads_prefixed, static_argnums=4)(q, k, v, bias, 0.3, prefix_k, prefix_v), expected)
