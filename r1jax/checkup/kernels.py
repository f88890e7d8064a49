"""Hand-written kernels and gradients on this process's first device, against the formula that each computes.

The formulas are plain jax.numpy under autodiff. Both sides compute in float32 at the highest precision that the device
has; on accelerators a kernel may still multiply in bfloat16, so the bound there is that of bfloat16's rounding. A TPU
runs its Pallas kernels as compiled, other devices the form that they use in their place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.checkup.findings import Finding
from r1jax.losses import logprobs
from r1jax.models import attention
from r1jax.models.ops import (
    blockwise_attention,
    gpu_attention,
    grouped_matmul,
    matmul,
    rms_norm,
    silu_gate,
    softmax_attention,
    splash,
)

BOUNDS = {"cpu": 2e-5, "other": 2e-2}  # of |difference| / |reference|, by norms; where values are float32
CURE = (
    "a kernel that computes something else trains a model wrongly: compare the versions of jax, jaxlib and libtpu with "
    "those of docs/stability.md, try another machine of the kind, and report it with this file"
)


class Case(NamedTuple):
    """A kernel and its formula, of the same arrays. trained: how many of them, from the first, have a gradient."""

    kernel: Callable[..., Any]
    formula: Callable[..., Any]
    arrays: tuple[Any, ...]
    trained: int


def check_kernels(*, quick: bool = False) -> Finding:
    """Values and gradients of every kernel against its formula; wrong if one differs by more than rounding."""
    platform = jax.local_devices()[0].platform
    bound = BOUNDS.get(platform, BOUNDS["other"])
    errors = {name: measure_error(case) for name, case in make_cases(platform, large=not quick).items()}
    worst = max(errors, key=lambda name: errors[name])
    figures = {"bound": bound, "relative_errors": errors}
    if far := [name for name, error in errors.items() if not error <= bound]:  # a NaN is wrong too
        shown = ", ".join(f"{name} by {errors[name]:.2g}" for name in far)
        return Finding("kernels", "wrong", f"differ from their formulas: {shown} (bound {bound:.0e})", CURE, figures)
    text = f"{len(errors)} kernels equal their formulas; the largest difference is {worst}'s {errors[worst]:.1e}"
    return Finding("kernels", "right", f"{text} (bound {bound:.0e})", figures=figures)


def make_cases(platform: str, *, large: bool) -> dict[str, Case]:
    """Every kernel with random arrays. large: sizes of a real layer where the device is an accelerator."""
    scale = 4 if large and platform != "cpu" else 1
    B, T, D, F, V = 2, 128 * scale, 64 * scale, 96 * scale, 512 * scale
    rows, hidden = _draw(0, B, T, D), _draw(1, B, T, F)
    cases = {
        "rms_norm": Case(
            lambda x, s: rms_norm.normalize(x, s, 1e-5),
            lambda x, s: x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * s,
            (rows, _draw(2, D)),
            2,
        ),
        "silu_gate": Case(silu_gate.gate_silu, lambda gate, up: jax.nn.silu(gate) * up, (hidden, _draw(3, B, T, F)), 2),
        "matmul": Case(matmul.multiply, lambda x, w: x @ w, (rows, _draw(4, D, F)), 2),
        "matmul_table": Case(matmul.multiply_table, lambda x, w: x @ w.T, (rows, _draw(5, V, D)), 2),
        "log_probs": Case(
            lambda x, t: logprobs.score_logits(x, t),
            _score_plainly,
            (3 * _draw(6, B, T, V), np.random.default_rng(7).integers(0, V, (B, T)).astype(np.int32)),
            1,
        ),
        "grouped_matmul": _make_grouped(8, 64 * scale),
    }
    if platform == "gpu" and gpu_attention.runs_here():
        cases["gpu_grouped_matmul"] = _make_grouped(8, 64 * scale, dtype="bfloat16")
    return cases | _make_attention(B, T, 16 * scale, platform)


def measure_error(case: Case) -> float:
    """The largest relative difference, by norms, of the values and of each gradient."""
    chosen = tuple(range(case.trained))
    with jax.default_matmul_precision("highest"):
        shapes = jax.tree.leaves(jax.eval_shape(case.formula, *case.arrays))
        probes = [_draw(100 + number, *leaf.shape) for number, leaf in enumerate(shapes)]

        def run(function: Callable[..., Any]) -> Any:
            def loss(*arrays: Any) -> tuple[jax.Array, Any]:
                values = function(*arrays)
                weighted = [(x * probe).sum() for x, probe in zip(jax.tree.leaves(values), probes, strict=True)]
                return jnp.stack(weighted).sum(), values

            (_, values), gradients = jax.jit(jax.value_and_grad(loss, chosen, has_aux=True))(*case.arrays)
            return jax.device_get((values, gradients))

        found, expected = run(case.kernel), run(case.formula)
    return max(map(_compare, jax.tree.leaves(found), jax.tree.leaves(expected)))


def _draw(seed: int, *shape: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(size=shape), np.float32)


def _compare(found: np.ndarray, expected: np.ndarray) -> float:
    norm = float(np.linalg.norm(expected))
    return float(np.linalg.norm(np.asarray(found, np.float64) - expected)) / (norm or 1.0)


def _score_plainly(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    logs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logs, targets[..., None], axis=-1)[..., 0]
    return chosen, -(jnp.exp(logs) * logs).sum(-1)


def _make_grouped(experts: int, width: int, dtype: str = "float32") -> Case:
    """Experts of unequal loads, one of them without rows, and rows behind the last group. dtype: of the kernel."""
    sizes = np.array([30, 0, 7, 41, 1, 64, 5, 12][:experts], np.int32)
    owner = np.repeat(np.arange(experts), sizes)
    owner = np.pad(owner, (0, 192 - len(owner)), constant_values=experts)

    def formula(rows: jax.Array, kernels: jax.Array) -> jax.Array:
        chosen = jnp.asarray(owner[:, None] == np.arange(experts), jnp.float32)
        return jnp.einsum("NE,ND,EDF->NF", chosen, rows, kernels)

    def kernel(rows: jax.Array, kernels: jax.Array) -> jax.Array:
        narrow = rows.astype(dtype), kernels.astype(dtype)
        return grouped_matmul.grouped_matmul(*narrow, jnp.asarray(sizes)).astype(rows.dtype)

    return Case(kernel, formula, (_draw(8, 192, width), _draw(9, experts, width, 2 * width)), 2)


def _make_attention(B: int, T: int, H: int, platform: str) -> dict[str, Case]:
    """Attention of packed rows in each of its forms against the softmax of all scores."""
    N, K = 4, 2
    arrays = _draw(10, B, T, N, H), _draw(11, B, K, T, H), _draw(12, B, K, T, H)
    ids = np.sort(np.random.default_rng(13).integers(1, 5, (B, T)), axis=1).astype(np.int32)
    mask = attention.segment_mask(jnp.asarray(ids))
    bias, scale = attention.mask_bias(mask), H**-0.5

    def formula(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        k, v = (jnp.repeat(x, N // K, axis=1) for x in (k, v))
        scores = jnp.einsum("BTNH,BNSH->BNTS", q, k) * scale + bias[:, None]
        return jnp.einsum("BNTS,BNSH->BTNH", jax.nn.softmax(scores), v)

    gathered = _draw(14, B, K, 2 * T, H), arrays[1], arrays[2]

    def gathered_formula(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = jnp.einsum("BKMH,BKSH->BKMS", q, k) * scale + jnp.tile(bias, (1, 2, 1))[:, None]
        return jnp.einsum("BKMS,BKSH->BKMH", jax.nn.softmax(scores), v)

    segments = blockwise_attention.Segments(jnp.asarray(ids))
    blocks = functools.partial(
        blockwise_attention.attend_blocks, attention.attend, segments=segments, prefix=None, scale=scale, block=T // 4
    )
    cases = {
        "softmax_attention": Case(
            lambda q, k, v: softmax_attention.attend_heads(q, k, v, bias, scale), gathered_formula, gathered, 3
        ),
        "blockwise_attention": Case(lambda q, k, v: blocks(q, k, v), formula, arrays, 3),
    }
    if platform == "tpu":
        kernel = lambda q, k, v: splash.attend_causal(q, k, v, jnp.asarray(ids), scale=scale)
        cases["splash_attention"] = Case(kernel, formula, arrays, 3)
    if platform == "gpu" and gpu_attention.runs_here():

        def packed(*arrays: jax.Array) -> jax.Array:
            q, k, v = (x.astype(jnp.bfloat16) for x in arrays)
            return gpu_attention.attend_packed(q, k, v, jnp.asarray(ids), scale=scale).astype(jnp.float32)

        cases["gpu_attention"] = Case(packed, formula, arrays, 3)
    return cases
