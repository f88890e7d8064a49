"""The gated delta rule in chunks against the rule itself, token by token in float64, over each token's own past."""

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.ops import delta_rule
from r1jax.models.ops.delta_rule import Memory, run_chunks, step

B, N, K, V = 2, 3, 4, 5
SEGMENTS = np.array([[1] * 5 + [2] * 4 + [3] * 6 + [4] * 3 + [5] * 5 + [0] * 3, [1] * 9 + [2] * 2 + [3] * 9 + [0] * 6])
PREFIXES = np.array([[0] * 5 + [1] * 4 + [1] * 6 + [0] * 3 + [4] * 5 + [0] * 3, [0] * 9 + [1] * 2 + [1] * 9 + [0] * 6])


def draw(T: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    return {
        "q": unit(random.normal(size=(B, T, N, K))),
        "k": unit(random.normal(size=(B, T, N, K))),
        "v": random.normal(size=(B, T, N, V)),
        "g": -random.exponential(0.3, size=(B, T, N)),
        "beta": random.uniform(size=(B, T, N)),
    }


def by_token(x: dict[str, np.ndarray], segments: np.ndarray, prefixes: np.ndarray, base: np.ndarray) -> np.ndarray:
    out, ends = np.zeros_like(x["v"]), {}
    for b, t in np.ndindex(segments.shape):
        segment, prefix = segments[b, t], prefixes[b, t]
        if segment == 0:
            continue
        state = ends.get((b, segment), ends.get((b, prefix), base[b])) if prefix else ends.get((b, segment), base[b])
        state = state * np.exp(x["g"][b, t])[:, None, None]
        found = np.einsum("nkv,nk->nv", state, x["k"][b, t])
        state = state + np.einsum("nk,nv->nkv", x["k"][b, t], x["beta"][b, t][:, None] * (x["v"][b, t] - found))
        ends[b, segment] = state
        out[b, t] = np.einsum("nkv,nk->nv", state, x["q"][b, t])
    return out


@pytest.mark.parametrize("chunk", [4, 7, 64])
@pytest.mark.parametrize("shared", [False, True])
def test_chunks_do_what_the_rule_does(monkeypatch: pytest.MonkeyPatch, chunk: int, shared: bool) -> None:
    monkeypatch.setattr(delta_rule, "CHUNK", chunk)
    x, prefixes = draw(SEGMENTS.shape[1]), PREFIXES if shared else np.zeros_like(PREFIXES)
    base = np.random.default_rng(1).normal(size=(B, N, K, V))
    expected = by_token(x, SEGMENTS, prefixes, base)
    arrays = [jnp.asarray(x[name], jnp.float32) for name in ("q", "k", "v", "g", "beta")]
    nothing, none = jnp.zeros((B, N, K, V)), jnp.zeros(B, jnp.int32)
    memory = Memory(nothing, none, nothing, none)
    found, _ = run_chunks(*arrays, jnp.asarray(SEGMENTS), jnp.asarray(prefixes), memory, jnp.asarray(base, jnp.float32))
    real = SEGMENTS != 0
    np.testing.assert_allclose(np.asarray(found)[real], expected[real], rtol=0, atol=2e-5)


def test_steps_go_on_where_chunks_end() -> None:
    x, T = draw(11), 11
    ones, zeros = jnp.ones((B, T), jnp.int32), jnp.zeros((B, T), jnp.int32)
    arrays = [jnp.asarray(x[name], jnp.float32) for name in ("q", "k", "v", "g", "beta")]
    nothing = jnp.zeros((B, N, K, V))
    memory = Memory(nothing, ones[:, 0], nothing, zeros[:, 0])
    whole, _ = run_chunks(*arrays, ones, zeros, memory, nothing)
    part, memory = run_chunks(*(a[:, :6] for a in arrays), ones[:, :6], zeros[:, :6], memory, nothing)
    state, found = memory.state, [part]
    for t in range(6, T):
        out, state = step(*(a[:, t] for a in arrays), state)
        found.append(out[:, None])
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), whole, rtol=0, atol=2e-6)
