"""Attention of packed rows on NVIDIA GPUs: flash attention as Triton kernels, forward and backward, without scores in
memory (FlashAttention-2, Dao 2023, 2307.08691).

A row holds segments, and a segment may continue an earlier one, as the completions of a shared prompt do. Blocks of
keys that no query of a block may see are not visited. jax's own kernels of this kind are deprecated, and those of
tokamax and cuDNN take no row in which several completions share a prompt. Off GPUs the same kernels run in interpret
mode, for tests; they were lowered for GPUs, and have not run on one.
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from r1jax.core.sharding import Axes, current_device, current_mesh, partition

BLOCK = 64  # queries, and keys, of a tile
WIDEST = 128  # head
HIDDEN = -1e30  # score of a key that a query does not see
OLDEST = 8.0  # compute capability: Ampere


def runs_here() -> bool:
    """Whether the program is compiled for NVIDIA GPUs that run Triton kernels: Ampere and later. The environment
    variable R1JAX_GPU_KERNELS=0 turns them off.
    """
    device = current_device()
    capability = str(getattr(device, "compute_capability", ""))  # of AMD's GPUs a name
    fits = capability.replace(".", "").isdigit() and float(capability) >= OLDEST
    return device.platform == "gpu" and fits and os.environ.get("R1JAX_GPU_KERNELS") != "0"


def fits(q_BTNH: jax.Array, v_BKTH: jax.Array) -> bool:
    """Whether the kernels run for such arrays: 16 bits an element, and tiles that fit into a GPU's shared memory."""
    return q_BTNH.dtype.itemsize == 2 and max(q_BTNH.shape[-1], v_BKTH.shape[-1]) <= WIDEST


class Rules(NamedTuple):
    """Rules of sight: of each token [B, T] its segment, the segment that this one continues (-1: none), its position;
    by blocks [B, T / BLOCK] the first block of keys that queries see, and the last block of queries that sees keys.
    """

    ids: jax.Array
    continued: jax.Array
    positions: jax.Array
    first: jax.Array
    last: jax.Array


def attend_packed(
    q_BTNH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    ids_BT: jax.Array | None,
    continued_BT: jax.Array | None = None,
    positions_BT: jax.Array | None = None,
    *,
    scale: float,
    window: int = 0,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention of tokens to their own segment and to the one that it continues (0: none) -> [B, T, N, H], H the
    width of the values, on each device of the current mesh with its own rows and heads.

    ids: None is one segment a row. window: of those keys the last so many positions (0: all). Rows are padded to whole
    blocks, widths to powers of two; padding attends to itself only.
    """
    B, T = q_BTNH.shape[:2]
    ids = jnp.ones((B, T), jnp.int32) if ids_BT is None else ids_BT.astype(jnp.int32)
    continued = jnp.zeros_like(ids) if continued_BT is None else continued_BT.astype(jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T)) if positions_BT is None else positions_BT
    fill = lambda x, axis: jnp.pad(x, [(0, -T % BLOCK if a == axis else 0) for a in range(x.ndim)])
    widen = lambda x: jnp.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, pl.next_power_of_2(x.shape[-1]) - x.shape[-1])])
    rules = find_rules(fill(ids, 1), fill(continued, 1), fill(positions.astype(jnp.int32), 1))
    arrays = widen(fill(q_BTNH, 1)), widen(fill(k_BKTH, 2)), widen(fill(v_BKTH, 2))
    run = functools.partial(_attend, scale, window, interpret)
    out = _on_each_device(run, *arrays, rules)
    return out[:, :T, :, : v_BKTH.shape[-1]]


def find_rules(ids: jax.Array, continued: jax.Array, positions: jax.Array) -> Rules:
    """The rules of rows of whole blocks; `continued` is 0 where a segment continues none."""
    B, T = ids.shape
    place = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    row, none = jnp.arange(B)[:, None], continued == 0
    begins = jnp.full((B, T + 1), T, jnp.int32).at[row, ids].min(place)  # by segment, as below
    ends = jnp.zeros((B, T + 1), jnp.int32).at[row, ids].max(place).at[row, jnp.where(none, ids, continued)].max(place)
    take = lambda table, index: jnp.take_along_axis(table, index, axis=1)
    first = jnp.minimum(take(begins, ids), take(begins, jnp.where(none, ids, continued)))
    blocks = lambda x: x.reshape(B, T // BLOCK, BLOCK)
    first, last = blocks(first).min(-1) // BLOCK, blocks(take(ends, ids)).max(-1) // BLOCK
    return Rules(ids, jnp.where(none, -1, continued), positions, first, last)


def _on_each_device(run: Any, q: jax.Array, k: jax.Array, v: jax.Array, rules: Rules) -> jax.Array:
    """Runs on each device of the current mesh with its own rows and heads, at full length and width."""
    mesh = current_mesh()
    if mesh is None or mesh.size == 1:
        return run(q, k, v, rules)
    keys: Axes = ("group_batch", "kv_heads", None, None)
    place: Any = lambda x, axes: partition(axes, x.shape, mesh, name="attention")
    queries = place(q, ("group_batch", None, "heads", None))
    specs = (queries, place(k, keys), place(v, keys), Rules(*[place(x, ("group_batch", None)) for x in rules]))
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=queries, check_vma=False)(q, k, v, rules)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(
    scale: float, window: int, interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array, rules: Rules
) -> jax.Array:
    return _attend_forward(scale, window, interpret, q, k, v, rules)[0]


def _attend_forward(
    scale: float, window: int, interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array, rules: Rules
) -> tuple[jax.Array, tuple]:
    B, T, N, _ = q.shape
    heads = N // k.shape[1]
    specs = _Specs(T, heads)
    out, log_total = _call(
        functools.partial(_visit_keys, scale=scale, window=window),
        (T // BLOCK, B, N),
        [specs.query(q), specs.keys(k), specs.keys(v), *[specs.row()] * 3, specs.row(T // BLOCK)],
        [specs.query(v), specs.statistic()],
        [jax.ShapeDtypeStruct((*q.shape[:3], v.shape[-1]), q.dtype), jax.ShapeDtypeStruct((B, N, T), jnp.float32)],
        "packed_attention",
        interpret,
    )(q, k, v, rules.ids, rules.continued, rules.positions, rules.first)
    return out, (q, k, v, rules, out, log_total)


def _attend_backward(
    scale: float, window: int, interpret: bool, saved: tuple, grad: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, rules, out, log_total = saved
    B, T, N, _ = q.shape
    K, heads = k.shape[1], N // k.shape[1]
    delta = jnp.einsum("BTNH,BTNH->BNT", grad, out, preferred_element_type=jnp.float32)
    grad = grad.astype(q.dtype)
    specs, rows = _Specs(T, heads), (rules.ids, rules.continued, rules.positions)
    (grad_q,) = _call(
        functools.partial(_visit_keys_again, scale=scale, window=window),
        (T // BLOCK, B, N),
        [
            *(specs.query(q), specs.keys(k), specs.keys(v), specs.query(grad), specs.statistic(), specs.statistic()),
            *[specs.row()] * 3,
            specs.row(T // BLOCK),
        ],
        [specs.query(q)],
        [jax.ShapeDtypeStruct(q.shape, q.dtype)],
        "packed_attention_queries",
        interpret,
    )(q, k, v, grad, log_total, delta, *rows, rules.first)
    group = lambda x: pl.BlockSpec((None, T, heads, x.shape[-1]), lambda i, b, h: (b, 0, h, 0))
    statistics = pl.BlockSpec((None, heads, T), lambda i, b, h: (b, h, 0))
    block = lambda x: pl.BlockSpec((None, None, BLOCK, x.shape[-1]), lambda i, b, h: (b, h, i, 0))
    grad_k, grad_v = _call(
        functools.partial(_visit_queries, scale=scale, window=window, heads=heads),
        (T // BLOCK, B, K),
        [group(q), block(k), block(v), group(grad), statistics, statistics, *[specs.row()] * 3, specs.row(T // BLOCK)],
        [block(k), block(v)],
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        "packed_attention_keys",
        interpret,
    )(q, k, v, grad, log_total, delta, *rows, rules.last)
    return grad_q, grad_k, grad_v, None


_attend.defvjp(_attend_forward, _attend_backward)


class _Specs:
    """Blocks of a program of the grid (block of queries, row, query head). heads: query heads of a key's head."""

    def __init__(self, length: int, heads: int):
        self.length, self.heads = length, heads

    def query(self, x: jax.Array) -> pl.BlockSpec:
        """A block of [B, T, N, H]."""
        return pl.BlockSpec((None, BLOCK, None, x.shape[-1]), lambda i, b, n: (b, i, n, 0))

    def keys(self, x: jax.Array) -> pl.BlockSpec:
        """All of a row's keys or values [B, K, T, H]."""
        return pl.BlockSpec((None, None, self.length, x.shape[-1]), lambda i, b, n: (b, n // self.heads, 0, 0))

    def statistic(self) -> pl.BlockSpec:
        """A block of [B, N, T]."""
        return pl.BlockSpec((None, None, BLOCK), lambda i, b, n: (b, n, i))

    def row(self, length: int = 0) -> pl.BlockSpec:
        """All of a row of [B, T], or of as many as `length`."""
        return pl.BlockSpec((None, length or self.length), lambda i, b, n: (b, 0))


def _call(
    kernel: Any, grid: tuple[int, ...], in_specs: Any, out_specs: Any, out_shape: Any, name: str, interpret: bool
) -> Any:
    params = plgpu.CompilerParams(num_warps=4, num_stages=2)
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=params,
        name=name,
        interpret=interpret,
    )


def _see(rows: tuple[Any, Any, Any], queries: Any, keys: Any, i: jax.Array, j: jax.Array, window: int) -> jax.Array:
    """Whether each query of block i sees each key of block j; queries, keys: their slices."""
    ids, continued, positions = rows
    q_ids, k_ids = ids[queries][:, None], ids[keys][None, :]
    seen = (q_ids == k_ids) | (continued[queries][:, None] == k_ids)
    place = jnp.arange(BLOCK)
    seen &= (j * BLOCK + place)[None, :] <= (i * BLOCK + place)[:, None]
    if window:
        seen &= positions[queries][:, None] - positions[keys][None, :] < window
    return seen


def _visit_keys(
    q: Any,
    k: Any,
    v: Any,
    ids: Any,
    continued: Any,
    positions: Any,
    first: Any,
    out: Any,
    log_total: Any,
    **options: Any,
) -> None:
    """Output of a block of queries, and the logarithm of the sum of its exponentials."""
    i, queries_BH = pl.program_id(0), q[...]
    block, rows = pl.ds(i * BLOCK, BLOCK), (ids, continued, positions)

    def visit(j: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        mean, peak, total = carry
        keys = pl.ds(j * BLOCK, BLOCK)
        scores = plgpu.dot(queries_BH, k[keys, :].T) * options["scale"]
        scores = jnp.where(_see(rows, block, keys, i, j, options["window"]), scores, HIDDEN)
        higher = jnp.maximum(peak, scores.max(1))
        powers, factor = jnp.exp(scores - higher[:, None]), jnp.exp(peak - higher)
        mean = mean * factor[:, None] + plgpu.dot(powers.astype(v.dtype), v[keys, :])
        return mean, higher, total * factor + powers.sum(1)

    empty = jnp.zeros((BLOCK, v.shape[-1]), jnp.float32), jnp.full(BLOCK, HIDDEN, jnp.float32), jnp.zeros(BLOCK)
    mean, peak, total = jax.lax.fori_loop(first[i], i + 1, visit, empty)
    out[...] = (mean / total[:, None]).astype(out.dtype)
    log_total[...] = peak + jnp.log(total)


def _visit_keys_again(
    q: Any,
    k: Any,
    v: Any,
    grad: Any,
    log_total: Any,
    delta: Any,
    ids: Any,
    continued: Any,
    positions: Any,
    first: Any,
    grad_q: Any,
    **options: Any,
) -> None:
    """Gradient of a block of queries."""
    i, queries_BH, grad_BH = pl.program_id(0), q[...], grad[...]
    totals, deltas = log_total[...][:, None], delta[...][:, None]
    block, rows = pl.ds(i * BLOCK, BLOCK), (ids, continued, positions)

    def visit(j: jax.Array, sums_BH: jax.Array) -> jax.Array:
        keys = pl.ds(j * BLOCK, BLOCK)
        keys_BH = k[keys, :]
        scores = plgpu.dot(queries_BH, keys_BH.T) * options["scale"]
        seen = _see(rows, block, keys, i, j, options["window"])
        weights = jnp.where(seen, jnp.exp(scores - totals), 0.0)
        grad_scores = weights * (plgpu.dot(grad_BH, v[keys, :].T) - deltas) * options["scale"]
        return sums_BH + plgpu.dot(grad_scores.astype(keys_BH.dtype), keys_BH)

    sums = jax.lax.fori_loop(first[i], i + 1, visit, jnp.zeros(q.shape, jnp.float32))
    grad_q[...] = sums.astype(grad_q.dtype)


def _visit_queries(
    q: Any,
    k: Any,
    v: Any,
    grad: Any,
    log_total: Any,
    delta: Any,
    ids: Any,
    continued: Any,
    positions: Any,
    last: Any,
    grad_k: Any,
    grad_v: Any,
    *,
    heads: int,
    **options: Any,
) -> None:
    """Gradients of a block of keys and values, by all query heads of their head."""
    j, keys_BH, values_BH = pl.program_id(0), k[...], v[...]
    block, rows = pl.ds(j * BLOCK, BLOCK), (ids, continued, positions)

    def visit(turn: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        sums_k, sums_v = sums
        i, head = j + jax.lax.div(turn, heads), jax.lax.rem(turn, heads)
        queries = pl.ds(i * BLOCK, BLOCK)
        queries_BH, grad_BH = q[queries, head, :], grad[queries, head, :]
        scores = plgpu.dot(queries_BH, keys_BH.T) * options["scale"]
        seen = _see(rows, queries, block, i, j, options["window"])
        weights = jnp.where(seen, jnp.exp(scores - log_total[head, queries][:, None]), 0.0)
        sums_v += plgpu.dot(weights.astype(grad_BH.dtype).T, grad_BH)
        towards = plgpu.dot(grad_BH, values_BH.T) - delta[head, queries][:, None]
        grad_scores = weights * towards * options["scale"]
        return sums_k + plgpu.dot(grad_scores.astype(queries_BH.dtype).T, queries_BH), sums_v

    empty = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    sums_k, sums_v = jax.lax.fori_loop(0, (last[j] - j + 1) * heads, visit, empty)
    grad_k[...], grad_v[...] = sums_k.astype(grad_k.dtype), sums_v.astype(grad_v.dtype)
