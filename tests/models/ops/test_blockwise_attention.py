"""Long rows, whose mask is never stored, against attention with the mask: in blocks, and by the splash kernel."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.models import transformer
from r1jax.models.attention import attend, mask_bias, segment_mask
from r1jax.models.ops import blockwise_attention as packed
from r1jax.models.ops import splash
from r1jax.models.ops.blockwise_attention import Segments, attend_blocks, attend_segments
from r1jax.models.ops.splash import attend_causal
from r1jax.models.presets import find_preset
from tests.models.toy import assert_close

WIDTHS = {"grouped": (8, 2, 16, 16), "latent": (4, 4, 24, 16), "absorbed": (4, 1, 24, 24)}


def make_arrays(widths: tuple[int, int, int, int], rows: int = 2, length: int = 200) -> tuple[jax.Array, ...]:
    heads, kv_heads, key, value = widths
    shapes = [(rows, length, heads, key), (rows, kv_heads, length, key), (rows, kv_heads, length, value)]
    return tuple(jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))


def make_segments(rows: int = 2, length: int = 200) -> tuple[jax.Array, jax.Array]:
    """Segments 1 to 5, padding at the end of the first row; some segments continue an earlier one."""
    rng = np.random.default_rng(0)
    ids = np.sort(rng.integers(1, 6, (rows, length)), axis=1)
    ids[0, -37:] = 0
    continued = np.select([ids == 2, ids == 3, ids == 5], [1, 1, 4], 0)
    return jnp.asarray(ids, jnp.int32), jnp.asarray(continued, jnp.int32)


def agree(got: Callable, expected: Callable, arrays: tuple, valid: jax.Array) -> None:
    """Values and gradients, at the tokens that are no padding, to 1e-5 of each tensor's norm."""

    def run(function: Callable) -> Any:
        noise = jax.random.normal(jax.random.key(9), jax.eval_shape(function, *arrays).shape) * valid[:, :, None, None]
        loss = lambda *arrays: (function(*arrays) * noise).sum()
        return function(*arrays) * valid[:, :, None, None], *jax.grad(loss, (0, 1, 2))(*arrays)

    assert_close(jax.jit(lambda: run(got))(), jax.jit(lambda: run(expected))())


@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("continues", [False, True], ids=["own", "continued"])
def test_blocks_equal_the_whole_mask(widths: tuple[int, int, int, int], continues: bool) -> None:
    arrays, (ids, continued) = make_arrays(widths), make_segments()
    segments = Segments(ids, continued if continues else None)
    bias = mask_bias(segment_mask(ids, segments.continued))
    whole = lambda q, k, v: attend(q, k, v, bias, scale=0.3)
    blocks = lambda q, k, v: attend_blocks(attend, q, k, v, segments, None, scale=0.3, block=32)
    agree(blocks, whole, arrays, ids != 0)


def test_blocks_see_a_shared_prefix() -> None:
    arrays, (ids, continued) = make_arrays(WIDTHS["grouped"]), make_segments()
    prefix = {name: jax.random.normal(jax.random.key(i), (1, 2, 5, 16)) for i, name in enumerate("kv")}
    bias = mask_bias(segment_mask(ids, continued))
    whole = lambda q, k, v: attend(q, k, v, bias, prefix)
    blocks = lambda q, k, v: attend_segments(attend, q, k, v, Segments(ids, continued), prefix, scale=0.25)
    agree(blocks, whole, arrays, ids != 0)


@pytest.mark.parametrize("widths", list(WIDTHS.values())[:2], ids=list(WIDTHS)[:2])
def test_the_splash_kernel_equals_the_whole_mask(widths: tuple[int, int, int, int]) -> None:
    arrays, (ids, _) = make_arrays(widths), make_segments()
    whole = lambda q, k, v: attend(q, k, v, mask_bias(segment_mask(ids)), scale=0.3)
    kernel = lambda q, k, v: attend_causal(q, k, v, ids, scale=0.3, interpret=True)
    agree(kernel, whole, arrays, ids != 0)


def test_the_splash_kernel_in_several_blocks_and_without_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splash, "BLOCK_Q", 128)
    monkeypatch.setattr(splash, "BLOCK_KV", 256)
    arrays = make_arrays(WIDTHS["grouped"], rows=1)
    every = jnp.ones((1, 200), jnp.int32)
    whole = lambda q, k, v: attend(q, k, v, mask_bias(segment_mask(every)), scale=0.25)
    agree(lambda q, k, v: attend_causal(q, k, v, None, scale=0.25, interpret=True), whole, arrays, every != 0)


def test_each_device_runs_the_kernel_on_its_rows_and_heads() -> None:
    arrays, (ids, _) = make_arrays(WIDTHS["grouped"], rows=4), make_segments(rows=4)
    kernel = lambda: attend_causal(*arrays, ids, scale=0.25, interpret=True)
    expected = kernel()
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        np.testing.assert_allclose(jax.jit(kernel)(), expected, atol=1e-5)


@pytest.mark.parametrize("preset", ["tiny_llama", pytest.param("tiny_deepseek_v3", marks=pytest.mark.slow)])
def test_a_model_gives_the_same_for_long_rows(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch by length changes how attention runs, and nothing else: forward, and prefill into a cache."""
    family, sizes = find_preset(preset)
    model = family.build(sizes, rngs=nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(0), (2, 96), 0, 256)
    ids, continued = make_segments(length=96)
    packed_rows = dict(segment_ids=ids, prefix_ids=continued)
    expected = model(tokens, **packed_rows), *model(tokens, cache=model.init_cache(2, 96))
    monkeypatch.setattr(transformer, "LONG_ROW", 96)
    monkeypatch.setattr(packed, "BLOCK", 8)
    got = model(tokens, **packed_rows), *model(tokens, cache=model.init_cache(2, 96))
    valid = (ids != 0)[:, :, None]
    np.testing.assert_allclose(got[0] * valid, expected[0] * valid, atol=2e-5)
    assert_close(got[1:], expected[1:], 2e-5)
