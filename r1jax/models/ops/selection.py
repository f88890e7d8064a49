"""Selection of keys by an indexer (DeepSeek Sparse Attention; DeepSeek-V3.2-Exp's report, equations 1 and 2).

The index score of a query t and a key s is I_ts = sum_n w_tn relu(q_tn . k_s) over the indexer's heads n; a query
attends to the `count` visible keys of the highest score. The indexer learns to rank keys as the attention does: the
loss of a query is KL(p_t || softmax(I_t)) over the keys it attends to, p_t the mean over the heads of its attention's
weights, taken as a constant (equations 3 and 4).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

NEGATIVE = -1e30


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Selection:
    """An indexer's view of some queries and keys: queries [B, T, N, H], weights [B, T, N], keys [B, S, H], and keys
    of a prefix [1, P, H] that all rows begin with, or None. count: keys that a query attends to (0: all).
    """

    queries: jax.Array
    weights: jax.Array
    keys: jax.Array
    before: jax.Array | None = None
    count: int = dataclasses.field(default=0, metadata=dict(static=True))

    @property
    def is_whole(self) -> bool:
        """Whether every query attends to all keys."""
        prefix = 0 if self.before is None else self.before.shape[1]
        return not self.count or prefix + self.keys.shape[1] <= self.count

    def fill(self, length: int) -> Selection:
        """Padded to rows of `length`."""
        pad = lambda x: jnp.pad(x, [(0, length - x.shape[1] if axis == 1 else 0) for axis in range(x.ndim)])
        return dataclasses.replace(self, queries=pad(self.queries), weights=pad(self.weights), keys=pad(self.keys))

    def take(self, start: jax.Array, block: int, end: int) -> Selection:
        """The part for `block` queries from `start` on and the keys before `end`."""
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, block, axis=1)
        return dataclasses.replace(self, queries=cut(self.queries), weights=cut(self.weights), keys=self.keys[:, :end])

    def score(self) -> jax.Array:
        """Index scores [B, T, P + S], float32. One head at a time, so that no [B, T, N, S] exists."""
        keys_BSH = self.keys
        if self.before is not None:
            before = jnp.broadcast_to(self.before, (keys_BSH.shape[0], *self.before.shape[1:]))
            keys_BSH = jnp.concatenate([before, keys_BSH], axis=1)

        @jax.checkpoint
        def add(total_BTS: jax.Array, head: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            q_BTH, w_BT = head
            product = jnp.einsum("BTH,BSH->BTS", q_BTH, keys_BSH, preferred_element_type=jnp.float32)
            return total_BTS + w_BT[..., None] * jax.nn.relu(product), None

        zeros = jnp.zeros((*self.queries.shape[:2], keys_BSH.shape[1]), jnp.float32)
        heads = jnp.moveaxis(self.queries, 2, 0), jnp.moveaxis(self.weights.astype(jnp.float32), 2, 0)
        return jax.lax.scan(add, zeros, heads)[0]

    def narrow(self, bias_BTS: jax.Array, before_BTP: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        """The masks of keys and of the prefix (None: all of it is visible) as biases, hugely negative where a key was
        not selected.
        """
        if self.is_whole:
            return bias_BTS, before_BTP
        length = 0 if self.before is None else self.before.shape[1]
        whole = self.mask(bias_BTS, before_BTP)
        _, places = jax.lax.top_k(jnp.where(whole > NEGATIVE / 2, self.score(), NEGATIVE), self.count)
        chosen = jnp.put_along_axis(jnp.zeros(whole.shape, bool), places, True, axis=-1, inplace=False)
        whole = jnp.where(chosen, whole, NEGATIVE)
        return whole[..., length:], whole[..., :length] if length else None

    def mask(self, bias_BTS: jax.Array, before_BTP: jax.Array | None) -> jax.Array:
        """The masks of the prefix and of the keys as one bias [B, T, P + S]."""
        shape = (*self.queries.shape[:2], bias_BTS.shape[-1])
        bias_BTS = jnp.broadcast_to(bias_BTS, shape)
        if self.before is None:
            return bias_BTS
        if before_BTP is None:
            before_BTP = jnp.zeros((*shape[:2], self.before.shape[1]), bias_BTS.dtype)
        return jnp.concatenate([jnp.broadcast_to(before_BTP, (*shape[:2], before_BTP.shape[-1])), bias_BTS], axis=-1)


def learn(
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    bias_BTS: jax.Array,
    prefix: Any = None,
    *,
    scale: float,
    selection: Selection,
) -> jax.Array:
    """The indexer's loss of each query [B, T, 1, 1], in nats. Arguments as those of `attend`, whose masks are narrowed
    to the selected keys; the values are not used.
    """
    q_BTNH, k_BKSH = jax.lax.stop_gradient((q_BTNH, k_BKSH))
    before = None
    if prefix is not None:
        before = prefix.get("bias")
        k_BKSH = jnp.concatenate([jnp.broadcast_to(prefix["k"], (k_BKSH.shape[0], *prefix["k"].shape[1:])), k_BKSH], 2)
        k_BKSH = jax.lax.stop_gradient(k_BKSH)
    mask_BTS = selection.mask(bias_BTS, before)
    K, N = k_BKSH.shape[1], q_BTNH.shape[2]

    def add(total_BTS: jax.Array, head: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        q_BTH, index = head
        k_BSH = jax.lax.dynamic_index_in_dim(k_BKSH, index, 1, keepdims=False)
        scores = jnp.einsum("BTH,BSH->BTS", q_BTH, k_BSH, preferred_element_type=jnp.float32) * scale + mask_BTS
        return total_BTS + jax.nn.softmax(scores, axis=-1) / N, None

    heads = jnp.moveaxis(q_BTNH, 2, 0), jnp.arange(N) // (N // K)
    target_BTS = jax.lax.stop_gradient(jax.lax.scan(add, jnp.zeros(mask_BTS.shape, jnp.float32), heads)[0])
    logs_BTS = jax.nn.log_softmax(selection.score() + mask_BTS, axis=-1)
    terms = target_BTS * (jnp.log(jnp.maximum(target_BTS, 1e-30)) - logs_BTS)
    return jnp.where(target_BTS > 0, terms, 0.0).sum(-1)[..., None, None]
