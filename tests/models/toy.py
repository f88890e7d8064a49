"""Toy Llamas for tests: all parameters random (norms too), wide enough that tokens differ clearly in probability."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

from r1jax.models.families import llama
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

    def check(path: Any, expected: Any, found: Any) -> None:
        name, found, expected = jax.tree_util.keystr(path), np.asarray(found, float), np.asarray(expected, float)
        assert found.shape == expected.shape and np.isfinite(found).all(), name
        error, size = float(np.linalg.norm(found - expected)), float(np.linalg.norm(expected))
        assert error <= tolerance * size, f"{name}: off by {error:.2g} of {size:.2g}"

    jax.tree_util.tree_map_with_path(check, expected, found)
