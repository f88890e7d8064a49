"""The GPU attention kernels, interpreted, against blocks of queries with a stored mask: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.attention import attend
from r1jax.models.ops import gpu_attention
from r1jax.models.ops.blockwise_attention import Segments, attend_blocks
from r1jax.models.ops.gpu_attention import attend_packed

T, N, K, H, V = 180, 4, 2, 24, 16  # a length and widths that are padded; two query heads a key's head
ENDS = (50, 70, 90, 160)  # of the segments; what follows is padding


def make_rows(*, shared: bool) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Segments, those that they continue, and positions [1, T]; shared: the second and third continue the first."""
    ids, continued, positions = (np.zeros((1, T), np.int32) for _ in range(3))
    for number, (begin, end) in enumerate(zip((0, *ENDS[:-1]), ENDS, strict=True), start=1):
        ids[:, begin:end], positions[:, begin:end] = number, np.arange(end - begin)
        if shared and number in (2, 3):
            continued[:, begin:end] = 1
            positions[:, begin:end] += ENDS[0]
    return jnp.asarray(ids), jnp.asarray(continued) if shared else None, jnp.asarray(positions)


@pytest.mark.parametrize("shared, window", [(True, 0), pytest.param(False, 30, marks=pytest.mark.slow)])
def test_kernels_and_blocks_agree(shared: bool, window: int) -> None:
    ids, continued, positions = make_rows(shared=shared)
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    arrays, probe = (
        (draw(1, T, N, H), draw(1, K, T, H), draw(1, K, T, V)),
        draw(1, T, N, V) * (ids != 0)[:, :, None, None],
    )
    told = Segments(ids, continued, positions if window else None, window=window)

    def by_kernel(*arrays: jax.Array) -> jax.Array:
        return attend_packed(*arrays, ids, continued, positions, scale=0.2, window=window, interpret=True)

    def by_blocks(*arrays: jax.Array) -> jax.Array:
        return attend_blocks(attend, *arrays, told, None, scale=0.2, block=16)

    def run(function: object) -> tuple[jax.Array, ...]:
        loss = lambda *arrays: (function(*arrays) * probe).sum()  # type: ignore[operator]
        return function(*arrays) * (probe != 0), *jax.grad(loss, (0, 1, 2))(*arrays)  # type: ignore[operator]

    for found, expected in zip(run(by_kernel), run(by_blocks), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_blocks_that_nobody_sees_are_left_out() -> None:
    ids = np.repeat([1, 2, 3, 4], gpu_attention.BLOCK)[None].astype(np.int32)
    continued = np.where(ids == 3, 1, 0).astype(np.int32)
    rules = gpu_attention.find_rules(jnp.asarray(ids), jnp.asarray(continued), jnp.asarray(ids))
    assert rules.first.tolist() == [[0, 1, 0, 3]]  # the third continues the first
    assert rules.last.tolist() == [[2, 1, 2, 3]]


def test_kernels_run_on_recent_nvidia_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        def __init__(self, platform: str, capability: str):
            self.platform, self.compute_capability = platform, capability

    for platform, capability, runs in (
        ("gpu", "9.0", True),
        ("gpu", "7.5", False),
        ("gpu", "gfx942", False),
        ("cpu", "", False),
    ):
        found = [Device(platform, capability)]
        monkeypatch.setattr(jax, "devices", lambda found=found: found)
        assert gpu_attention.runs_here() is runs, (platform, capability)
    monkeypatch.setattr(jax, "devices", lambda: [Device("gpu", "9.0")])
    monkeypatch.setenv("R1JAX_GPU_KERNELS", "0")
    assert not gpu_attention.runs_here()
