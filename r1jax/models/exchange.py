"""Expert exchange in a per-device program: token rows go to the devices of their experts and back.

Every function has the signature

    by_x(x [M, D], choice [M, A], weights [M, A], kernels, peers, factor) -> (y [M, D], overflow)

and runs on one device, with its own M tokens and, of E experts, the E / X in `kernels`; `peers` names the X devices
that exchange rows. Choices index all experts; E and above mean none. A pair is a token and one of its choices, numbered
m * A + a; the N = M * A pairs are assigned to S places of a buffer by two index arrays, inverse to each other:
`pair_S`, the pair at each place (N: none), and `place_MA`, the place of each pair (S: none).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from r1jax.models.ops.grouped_matmul import grouped_matmul
from r1jax.models.ops.silu_gate import gate_gelu, gate_silu
from r1jax.models.ops.splash import runs_here
from r1jax.models.ops.stacked_matmul import fits, multiply_in_stack
from r1jax.models.stacks import StackedLayer, read

SLOPE, CLAMP = 1.702, 7.0


class Kernels(NamedTuple):
    """Expert weights: gate and up [E, D, F], down [E, F, D]; arrays, or those of a layer inside the stack of all."""

    gate: jax.Array | StackedLayer
    up: jax.Array | StackedLayer
    down: jax.Array | StackedLayer
    mix = staticmethod(gate_silu)  # type: ignore[misc]  # not a field


class GeluKernels(Kernels):
    """Expert weights with GeGLU (tanh form) in place of SwiGLU."""

    __slots__ = ()
    mix = staticmethod(gate_gelu)


class ClampedKernels(NamedTuple):
    """Expert weights with biases [E, F], [E, F], [E, D], and another gate (`gate_clamped`)."""

    gate: jax.Array | StackedLayer
    up: jax.Array | StackedLayer
    down: jax.Array | StackedLayer
    gate_bias: jax.Array | StackedLayer
    up_bias: jax.Array | StackedLayer
    down_bias: jax.Array | StackedLayer


class Peers(NamedTuple):
    """Devices that exchange rows: mesh axes, number of devices, and whether the platform has a native ragged
    exchange.
    """

    axes: tuple[str, ...]
    devices: int
    native: bool


Result = tuple[jax.Array, jax.Array]


class Returned(NamedTuple):
    """Experts' results back at the tokens' device: rows [S, D], the index arrays of its places, which pairs found a
    place on the way [M, A], and how many did not.
    """

    rows: jax.Array
    pair: jax.Array
    place: jax.Array
    found: jax.Array
    overflow: jax.Array

    def combine(self, weights_MA: jax.Array) -> Result:
        """The weighted sums, and the number of pairs without a place."""
        return combine(self.rows, self.pair, self.place, weights_MA), self.overflow


def size(mesh: Mesh, axes: tuple[str, ...]) -> int:
    """Number of devices along some axes of a mesh."""
    return math.prod(mesh.shape[axis] for axis in axes)


# --- Exchange by all-gather ---


def by_all_gather(
    x_MD: jax.Array, choice_MA: jax.Array, weights_MA: jax.Array, kernels: Kernels, peers: Peers, factor: float
) -> Result:
    """All-gather, compute, reduce-scatter. Also the single-device path, which exchanges nothing."""
    active, experts = choice_MA.shape[1], len(kernels.gate)
    if peers.devices > 1:
        gather = lambda array: jax.lax.all_gather(array, peers.axes, tiled=True)
        x_MD, choice_MA, weights_MA = gather(x_MD), gather(choice_MA), gather(weights_MA)
        mine = choice_MA - jax.lax.axis_index(peers.axes) * experts
        choice_MA = jnp.where((mine >= 0) & (mine < experts), mine, experts)
    expert_N, order_N, position_N, sizes_E = sort_pairs(choice_MA, experts)
    places = _limit(len(x_MD) * min(active, experts), len(expert_N) // peers.devices, factor)
    kept_E = cut(sizes_E, places)
    inside = position_N < kept_E.sum()
    pair_S = jnp.where(jnp.arange(places) < kept_E.sum(), order_N[:places], len(expert_N))
    place_MA = jnp.where(inside, position_N, places).reshape(choice_MA.shape)
    out_SD = run_experts(spread(x_MD, pair_S, place_MA), kept_E, kernels)
    y_MD = combine(out_SD, pair_S, place_MA, weights_MA)
    if peers.devices > 1:
        y_MD = jax.lax.psum_scatter(y_MD, peers.axes, scatter_dimension=0, tiled=True)
    return y_MD, _overflow(sizes_E, kept_E)


# --- Exchange by equal buffers ---


def by_all_to_all(
    x_MD: jax.Array, choice_MA: jax.Array, weights_MA: jax.Array, kernels: Kernels, peers: Peers, factor: float
) -> Result:
    """All-to-all with buffers [X, P, D]: P places from one device to each other device."""
    return exchange_equal(x_MD, choice_MA, kernels, peers, factor).combine(weights_MA)


def exchange_equal(x_MD: jax.Array, choice_MA: jax.Array, kernels: Kernels, peers: Peers, factor: float) -> Returned:
    """`by_all_to_all` without the weighted sums."""
    X, experts = peers.devices, len(kernels.gate)
    expert_N, order_N, position_N, sizes = sort_pairs(choice_MA, X * experts)
    places = _limit(len(x_MD) * min(choice_MA.shape[1], experts), len(expert_N) // X, factor)
    sizes_XE = sizes.reshape(X, experts)
    kept_XE = jax.vmap(cut, (0, None))(sizes_XE, places)
    start_X = _starts(sizes_XE.sum(-1))
    device_N = jnp.minimum(expert_N // experts, X - 1)
    offset_N = position_N - start_X[device_N]
    fits = (expert_N < X * experts) & (offset_N < places)
    place_MA = jnp.where(fits, device_N * places + offset_N, X * places).reshape(choice_MA.shape)
    offset_XP = jnp.arange(places)[None]
    at_XP = jnp.minimum(start_X[:, None] + offset_XP, len(order_N) - 1)
    pair_XP = jnp.where(offset_XP < kept_XE.sum(-1, keepdims=True), order_N[at_XP], len(order_N))
    pair_S = pair_XP.reshape(-1)

    swap = lambda array: jax.lax.all_to_all(array, peers.axes, 0, 0)
    received_XPD = swap(spread(x_MD, pair_S, place_MA).reshape(X, places, -1))
    ends_XE = jnp.cumsum(swap(kept_XE), axis=-1)
    expert_XP = jax.vmap(lambda ends: jnp.searchsorted(ends, jnp.arange(places), side="right"))(ends_XE)
    out_SD = sort_and_run(received_XPD.reshape(X * places, -1), expert_XP.reshape(-1), kernels)
    back_SD = swap(out_SD.reshape(X, places, -1)).reshape(X * places, -1)
    return Returned(back_SD, pair_S, place_MA, fits.reshape(choice_MA.shape), _overflow(sizes_XE, kept_XE))


# --- Ragged exchange ---


def by_ragged(
    x_MD: jax.Array, choice_MA: jax.Array, weights_MA: jax.Array, kernels: Kernels, peers: Peers, factor: float
) -> Result:
    """Sends rows sorted by expert, without padding; a device has one buffer for all rows that it receives, in order of
    senders. Every device knows all sizes, so all agree on which rows do not fit: the last ones.
    """
    return exchange_sorted(x_MD, choice_MA, kernels, peers, factor).combine(weights_MA)


def exchange_sorted(x_MD: jax.Array, choice_MA: jax.Array, kernels: Kernels, peers: Peers, factor: float) -> Returned:
    """`by_ragged` without the weighted sums."""
    X, experts = peers.devices, len(kernels.gate)
    expert_N, order_N, position_N, sizes = sort_pairs(choice_MA, X * experts)
    pairs, place_MA = len(expert_N), position_N.reshape(choice_MA.shape)
    places = _limit(X * len(x_MD) * min(choice_MA.shape[1], experts), pairs, factor)
    sizes_XXE = jax.lax.all_gather(sizes.reshape(1, X, experts), peers.axes, tiled=True)  # from, to, expert there
    me = jax.lax.axis_index(peers.axes)
    kept_XXE = jax.vmap(cut, (1, None), 1)(sizes_XXE, places)
    kept_XX, wanted_XX = kept_XXE.sum(-1), sizes_XXE.sum(-1)
    sent_from_XX = jax.vmap(_starts)(wanted_XX)
    put_at_XX = jax.vmap(_starts, 1, 1)(kept_XX)

    sorted_ND = spread(x_MD, order_N, place_MA)
    received = jnp.zeros((places, x_MD.shape[1]), x_MD.dtype)
    there = (sent_from_XX[me], kept_XX[me], put_at_XX[me], kept_XX[:, me])
    received_SD = exchange_ragged(sorted_ND, received, *there, peers=peers)
    ends = jnp.cumsum(kept_XXE[:, me].reshape(-1))
    run = jnp.searchsorted(ends, jnp.arange(places), side="right")
    out_SD = sort_and_run(received_SD, jnp.where(run < X * experts, run % experts, experts), kernels)
    back = (put_at_XX[:, me], kept_XX[:, me], sent_from_XX[:, me], kept_XX[me])
    back_ND = exchange_ragged(out_SD, jnp.zeros((pairs, x_MD.shape[1]), x_MD.dtype), *back, peers=peers)
    to_N = jnp.minimum(expert_N // experts, X - 1)
    found_N = (expert_N < X * experts) & (position_N - sent_from_XX[me][to_N] < kept_XX[me][to_N])
    found_MA = found_N.reshape(choice_MA.shape)
    return Returned(back_ND, order_N, place_MA, found_MA, _overflow(wanted_XX[me], kept_XX[me]))


def exchange_ragged(
    operand: jax.Array,
    output: jax.Array,
    input_offsets_X: jax.Array,
    send_sizes_X: jax.Array,
    output_offsets_X: jax.Array,
    recv_sizes_X: jax.Array,
    *,
    peers: Peers,
) -> jax.Array:
    """`jax.lax.ragged_all_to_all`, or an emulation by all-gather where the platform lacks it."""
    sizes = (input_offsets_X, send_sizes_X, output_offsets_X, recv_sizes_X)
    if peers.native:
        return jax.lax.ragged_all_to_all(operand, output, *sizes, axis_name=peers.axes)
    everything, *told = (jax.lax.all_gather(array, peers.axes) for array in (operand, *sizes[:3]))
    start_X, size_X, put_X = (array[:, jax.lax.axis_index(peers.axes)] for array in told)
    row_S = jnp.arange(len(output))
    inside_SX = (row_S[:, None] >= put_X) & (row_S[:, None] < put_X + size_X)
    source_S = inside_SX.argmax(-1)
    found = everything[source_S, start_X[source_S] + row_S - put_X[source_S]]
    return jnp.where(inside_SX.any(-1, keepdims=True), found, output)


# --- Further turns ---


def exchange_all(
    exchange: Callable[[jax.Array, jax.Array], Returned],
    flat: tuple[jax.Array, ...],
    nobody: int,
    everybody: tuple[str, ...],
) -> Result:
    """Sends (x [M, D], choice [M, A], weights [M, A]) by `exchange(x, choice)`, and what found no place in a further
    turn, until nothing is left; the overflow is that of the first turn. nobody: the choice that means no expert.

    Results wait as one row a pair and are summed at the end, so that they do not depend on who travelled when. All
    devices (along the axes `everybody`) take the same number of turns.
    """
    x_MD, choice_MA, weights_MA = flat

    def turn(state: tuple) -> tuple:
        left_MA, out_MAD, overflow, turns, _ = state
        back = exchange(x_MD, left_MA)
        found_MAD = collect(back.rows, back.pair, back.place)
        out_MAD = jnp.where(back.found[..., None], found_MAD, out_MAD)
        left_MA = jnp.where(back.found, nobody, left_MA)
        waiting = jax.lax.psum((left_MA < nobody).any().astype(jnp.int32), everybody)
        return left_MA, out_MAD, jnp.where(turns == 0, back.overflow, overflow), turns + 1, waiting

    out_MAD = jnp.zeros((*choice_MA.shape, x_MD.shape[1]), x_MD.dtype)
    state = (choice_MA, out_MAD, jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.ones((), jnp.int32))
    _, out_MAD, overflow, _, _ = jax.lax.while_loop(lambda state: state[-1] > 0, turn, state)
    return (out_MAD.astype(jnp.float32) * weights_MA[..., None]).sum(1).astype(x_MD.dtype), overflow


# --- Parts ---


def run_experts(rows_SD: jax.Array, sizes_E: jax.Array, kernels: Kernels) -> jax.Array:
    """Applies experts to rows grouped by expert; rows after the groups give zeros."""
    gate, up = (_multiply(rows_SD, kernel, sizes_E) for kernel in kernels[:2])
    if not isinstance(kernels, ClampedKernels):
        return _multiply(kernels.mix(gate, up), kernels.down, sizes_E)
    row_S = jnp.arange(len(rows_SD))
    expert_S = jnp.searchsorted(jnp.cumsum(sizes_E), row_S, side="right")
    own = jnp.where(row_S < sizes_E.sum(), expert_S, len(sizes_E))
    add = lambda rows, bias: rows + jnp.take(read(bias), own, axis=0, mode="fill", fill_value=0)
    hidden = gate_clamped(add(gate, kernels.gate_bias), add(up, kernels.up_bias))
    return add(_multiply(hidden, kernels.down, sizes_E), kernels.down_bias)


def gate_clamped(gate: jax.Array, up: jax.Array) -> jax.Array:
    """(up + 1) gate sigmoid(1.702 gate), with gate at most 7 and up within +-7 (gpt-oss, 2508.10925)."""
    gate, up = jnp.minimum(gate, CLAMP), jnp.clip(up, -CLAMP, CLAMP)
    return (up + 1) * gate * jax.nn.sigmoid(SLOPE * gate)


def _multiply(rows: jax.Array, kernel: jax.Array | StackedLayer, sizes_E: jax.Array) -> jax.Array:
    """`grouped_matmul`, for a layer inside its stack by a kernel that reads it there where it can."""
    if not isinstance(kernel, StackedLayer):
        return grouped_matmul(rows, kernel, sizes_E)
    if runs_here() and fits(rows, kernel.stack):
        return multiply_in_stack(rows, kernel.stack, kernel.index, sizes_E)
    return grouped_matmul(rows, read(kernel), sizes_E)


def sort_and_run(rows_SD: jax.Array, expert_S: jax.Array, kernels: Kernels) -> jax.Array:
    """Applies to each row its expert (E: none, zeros), for rows in any order; keeps the order."""
    order_S = jnp.argsort(expert_S, stable=True)
    place_S1 = invert(order_S)[:, None]
    out_SD = run_experts(spread(rows_SD, order_S, place_S1), count_rows(expert_S, len(kernels.gate)), kernels)
    return collect(out_SD, order_S, place_S1)[:, 0]


def combine(out_SD: jax.Array, pair_S: jax.Array, place_MA: jax.Array, weights_MA: jax.Array) -> jax.Array:
    """[M, D]: weighted sum of each token's rows, accumulated in float32."""
    out_MAD = collect(out_SD, pair_S, place_MA).astype(jnp.float32)
    return (out_MAD * weights_MA[..., None]).sum(1).astype(out_SD.dtype)


def sort_pairs(choice_MA: jax.Array, experts: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The expert of each pair [N], the pairs in order of their experts, each pair's position there, and the number of
    pairs of each expert [E].
    """
    expert_N = choice_MA.reshape(-1)
    order_N = jnp.argsort(expert_N, stable=True)
    return expert_N, order_N, invert(order_N), count_rows(expert_N, experts)


def count_rows(expert_N: jax.Array, experts: int) -> jax.Array:
    """[E]: number of rows of each expert; indices of E and above are ignored."""
    return (expert_N[:, None] == jnp.arange(experts)).sum(0, dtype=jnp.int32)


def cut(sizes: jax.Array, places: int) -> jax.Array:
    """Truncates consecutive group sizes to a capacity; an array's axes are read as one."""
    ends = jnp.minimum(jnp.cumsum(sizes.reshape(-1)), places)
    return jnp.diff(ends, prepend=0).reshape(sizes.shape)


def invert(order_N: jax.Array) -> jax.Array:
    """The inverse permutation."""
    return jnp.zeros_like(order_N).at[order_N].set(jnp.arange(len(order_N), dtype=order_N.dtype))


def _starts(sizes: jax.Array) -> jax.Array:
    return jnp.cumsum(sizes) - sizes


def _limit(most: int, mean: int, factor: float) -> int:
    """Number of places in a buffer: enough for the maximum, or `factor` times the mean."""
    return max(1, min(most, math.ceil(mean * factor))) if factor else most


def _overflow(sizes: jax.Array, kept: jax.Array) -> jax.Array:
    return (sizes.sum() - kept.sum()).astype(jnp.float32)


# Each place holds at most one pair, so the gradient of a gather is the gather in the opposite direction; autodiff would
# use a scatter-add, row by row.


@jax.custom_vjp
def spread(x_MD: jax.Array, pair_S: jax.Array, place_MA: jax.Array) -> jax.Array:
    """[S, D]: the token row of the pair at each place, zeros where there is none."""
    return _take(x_MD, pair_S // place_MA.shape[1])


def _spread_forward(x: jax.Array, pair: jax.Array, place: jax.Array) -> tuple[jax.Array, jax.Array]:
    return spread(x, pair, place), place


def _spread_backward(place: jax.Array, grad: jax.Array) -> tuple[jax.Array, None, None]:
    return _take(grad, place).astype(jnp.float32).sum(1).astype(grad.dtype), None, None


spread.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def collect(out_SD: jax.Array, pair_S: jax.Array, place_MA: jax.Array) -> jax.Array:
    """[M, A, D]: the row at the place of each pair, zeros where it has none."""
    return _take(out_SD, place_MA)


def _collect_forward(out: jax.Array, pair: jax.Array, place: jax.Array) -> tuple[jax.Array, jax.Array]:
    return collect(out, pair, place), pair


def _collect_backward(pair: jax.Array, grad: jax.Array) -> tuple[jax.Array, None, None]:
    return _take(grad.reshape(-1, grad.shape[-1]), pair), None, None


collect.defvjp(_collect_forward, _collect_backward)


def _take(rows: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take(rows, index, axis=0, mode="fill", fill_value=0)
