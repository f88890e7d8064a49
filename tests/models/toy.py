"""Toy Llamas for tests: all parameters random (norms too), wide enough that tokens differ clearly in probability."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

from r1jax.models import llama
from r1jax.models.transformer import Params, split

CONFIG = llama.Config(vocab_size=64, hidden_size=32, intermediate_size=64, head_dim=8, initializer_std=0.2)


def build(config: llama.Config = CONFIG, *, seed: int = 0, **options: Any) -> tuple[nnx.GraphDef, Params]:
    """Structure and parameters; every norm's scale is drawn too, so that a forgotten one shows."""
    graph, params = split(llama.build(config, rngs=nnx.Rngs(seed), **options))
    draw = lambda path, leaf: leaf * np.random.default_rng(len(path)).uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
    is_norm = lambda path: path[-1].key == "scale"
    return graph, jax.tree_util.tree_map_with_path(lambda p, x: draw(p, x) if is_norm(p) else x, params)


def change(**sizes: Any) -> llama.Config:
    """The toy's config with some sizes replaced."""
    return dataclasses.replace(CONFIG, **sizes)


def tokens(*shape: int, seed: int = 0, vocab: int = CONFIG.vocab_size) -> np.ndarray:
    """Random ids."""
    return np.random.default_rng(seed).integers(1, vocab, shape).astype(np.int32)


def assert_close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """All arrays of two trees differ by at most `tolerance` of the norm of the expected one."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all(), jax.tree_util.keystr(path)
        error, size = np.linalg.norm(a - b), np.linalg.norm(b)
        assert error <= tolerance * size, f"{jax.tree_util.keystr(path)}: off by {error / max(size, 1e-300):.2g}"
