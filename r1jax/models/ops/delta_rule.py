"""The gated delta rule (Yang et al. 2024, 2412.06464): a matrix per head that forgets, and in which each token
overwrites what its key finds.

    S_t = a_t S_{t-1} + k_t (b_t (v_t - a_t S_{t-1}^T k_t))^T,    o_t = S_t^T q_t,    a_t = exp(g_t)

Chunks of tokens are computed at once (the WY form of Yang et al. 2024, 2406.06484): within a chunk the corrections of
all tokens solve a triangular system, and the matrix passes from chunk to chunk. Rows may hold several segments, and
segments that continue an earlier one, as completions of a shared prompt do: a token's past is then the tokens of its
own segment and of that one. All in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

CHUNK = 64


class Memory(NamedTuple):
    """Matrices [B, N, K, V] at the last token of a row, at the end of the last segment that continues no other, and the
    numbers of these segments [B] (0: none).
    """

    state: jax.Array
    segment: jax.Array
    root: jax.Array
    root_segment: jax.Array


def step(
    q_BNK: jax.Array, k_BNK: jax.Array, v_BNV: jax.Array, g_BN: jax.Array, beta_BN: jax.Array, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One token of each row: the outputs [B, N, V] and the matrices after it."""
    state = state * jnp.exp(g_BN)[..., None, None]
    found_BNV = jnp.einsum("BNKV,BNK->BNV", state, k_BNK)
    state = state + jnp.einsum("BNK,BNV->BNKV", k_BNK, beta_BN[..., None] * (v_BNV - found_BNV))
    return jnp.einsum("BNKV,BNK->BNV", state, q_BNK), state


def run_chunks(
    q_BTNK: jax.Array,
    k_BTNK: jax.Array,
    v_BTNV: jax.Array,
    g_BTN: jax.Array,
    beta_BTN: jax.Array,
    segments_BT: jax.Array,
    prefixes_BT: jax.Array,
    memory: Memory,
    base: jax.Array,
) -> tuple[jax.Array, Memory]:
    """Outputs [B, T, N, V] of rows, and the memory after them.

    segments, prefixes: as in `attention.segment_mask`; 0 in segments is padding, which changes nothing. base: the
    matrix that segments without a past begin with.
    """
    T = q_BTNK.shape[1]
    size = min(CHUNK, T)
    chunks = -(-T // size)
    fill = lambda x: jnp.pad(x, [(0, 0), (0, chunks * size - T), *[(0, 0)] * (x.ndim - 2)])
    cut = lambda x: jnp.moveaxis(fill(x).reshape(x.shape[0], chunks, size, *x.shape[2:]), 1, 0)
    arrays = tuple(map(cut, (q_BTNK, k_BTNK, v_BTNV, g_BTN, beta_BTN, segments_BT, prefixes_BT)))
    run = jax.checkpoint(lambda memory, chunk: _run_chunk(memory, chunk, base))
    memory, out = jax.lax.scan(run, memory, arrays)
    out = jnp.moveaxis(out, 0, 1)
    return out.reshape(out.shape[0], chunks * size, *out.shape[3:])[:, :T], memory


def _run_chunk(memory: Memory, chunk: tuple, base: jax.Array) -> tuple[Memory, jax.Array]:
    q, k, v, g, beta, segments_BC, prefixes_BC = chunk
    keys, queries, before = segments_BC[:, None, :], segments_BC[:, :, None], prefixes_BC[:, :, None]
    earlier = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))
    sees_BCC = earlier & (keys != 0) & ((keys == queries) | (keys == before))
    decay_BCN = jnp.einsum("BIJ,BJN->BIN", sees_BCC.astype(jnp.float32), g)  # along a token's own past in the chunk
    gap = decay_BCN[:, :, None] - decay_BCN[:, None]
    kept_BCCN = jnp.exp(jnp.where(sees_BCC[..., None], gap, -jnp.inf))
    real_BC = segments_BC != 0
    goes_on = real_BC & (
        (segments_BC == memory.segment[:, None]) | ((prefixes_BC == memory.segment[:, None]) & (prefixes_BC != 0))
    )
    from_root = real_BC & ~goes_on & (prefixes_BC != 0) & (prefixes_BC == memory.root_segment[:, None])
    sources = ((goes_on, memory.state), (from_root, memory.root), (real_BC & ~goes_on & ~from_root, base))

    def read(x_BCNK: jax.Array) -> jax.Array:
        """Values that a chunk's vectors find in the matrices that their tokens begin with."""
        found = [
            jnp.where(which[..., None, None], jnp.einsum("BCNK,BNKV->BCNV", x_BCNK, matrix), 0)
            for which, matrix in sources
        ]
        return sum(found) * jnp.exp(decay_BCN)[..., None]

    scores = jnp.einsum("BINK,BJNK->BIJN", k, k) * kept_BCCN * beta[:, :, None]
    system_BNCC = jnp.moveaxis(jnp.where(jnp.tril(earlier, -1)[..., None], scores, 0), 3, 1)
    right_BNCV = jnp.moveaxis(beta[..., None] * (v - read(k)), 2, 1)
    written_BNCV = jax.scipy.linalg.solve_triangular(
        system_BNCC + jnp.eye(q.shape[1]), right_BNCV, lower=True, unit_diagonal=True
    )
    inner = jnp.einsum("BINK,BJNK->BIJN", q, k) * kept_BCCN
    out_BCNV = read(q) + jnp.einsum("BIJN,BNJV->BINV", inner, written_BNCV)

    def end_at(which_BC: jax.Array, old: jax.Array, old_segment: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The matrix after the last of these tokens and its segment; the old ones where there is none."""
        last_B = jnp.max(jnp.where(which_BC, jnp.arange(which_BC.shape[1]), -1), axis=1)
        at = jnp.maximum(last_B, 0)
        pick = lambda x: jnp.take_along_axis(x, at.reshape(-1, 1, *[1] * (x.ndim - 2)), axis=1)[:, 0]
        begun = sum(jnp.where(pick(mine)[:, None, None, None], matrix, 0) for mine, matrix in sources)
        new = begun * jnp.exp(pick(decay_BCN))[..., None, None]
        new = new + jnp.einsum("BJN,BJNK,BNJV->BNKV", pick(kept_BCCN), k, written_BNCV)
        there = last_B >= 0
        return jnp.where(there[:, None, None, None], new, old), jnp.where(there, pick(segments_BC), old_segment)

    state = end_at(real_BC, memory.state, memory.segment)
    root = end_at(real_BC & (prefixes_BC == 0), memory.root, memory.root_segment)
    return Memory(*state, *root), out_BCNV
