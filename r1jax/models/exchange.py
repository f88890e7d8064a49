"""Experts on one device of several: its tokens' rows go to the devices of their experts, and come back.

Every function has the signature

    by_x(x [M, D], choice [M, A], weights [M, A], kernels, peers, factor) -> (y [M, D], overflow)

and runs in a program of one device, with its own M tokens and, of E experts, the E / X in `kernels`; `peers` names the
X devices that exchange rows. Choices count all experts; E and more are none. A pair is a token and one of its choices,
numbered m * A + a; N = M * A pairs want S places in a buffer. Two index arrays tie them, each the inverse of the other:
`pair_S`, the pair at each place (N: none), and `place_MA`, the place of each pair (S: none).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from r1jax.models.ops.grouped_matmul import grouped_matmul
from r1jax.models.ops.silu_gate import gate_silu


class Kernels(NamedTuple):
    """What the experts are: gate and up [E, D, F], down [E, F, D]."""

    gate: jax.Array
    up: jax.Array
    down: jax.Array


class Peers(NamedTuple):
    """The devices that exchange rows: mesh axes, how many devices, and whether their platform has ragged exchange."""

    axes: tuple[str, ...]
    devices: int
    native: bool


Result = tuple[jax.Array, jax.Array]


def size(mesh: Mesh, axes: tuple[str, ...]) -> int:
    """How many devices some axes of a mesh make."""
    return math.prod(mesh.shape[axis] for axis in axes)


# --- By gathering everything ---


def by_all_gather(
    x_MD: jax.Array, choice_MA: jax.Array, weights_MA: jax.Array, kernels: Kernels, peers: Peers, factor: float
) -> Result:
    """Also what a device does that has all experts: it exchanges nothing."""
    active, experts = choice_MA.shape[1], len(kernels.gate)
    if peers.devices > 1:
        gather = lambda array: jax.lax.all_gather(array, peers.axes, tiled=True)
        x_MD, choice_MA, weights_MA = gather(x_MD), gather(choice_MA), gather(weights_MA)
        mine = choice_MA - jax.lax.axis_index(peers.axes) * experts
        choice_MA = jnp.where((mine >= 0) & (mine < experts), mine, experts)
    expert_N = choice_MA.reshape(-1)
    places = _limit(len(x_MD) * min(active, experts), len(expert_N) // peers.devices, factor)
    order_N = jnp.argsort(expert_N, stable=True)
    position_N = invert(order_N)
    sizes_E = count_rows(expert_N, experts)
    kept_E = cut(sizes_E, places)
    inside = position_N < kept_E.sum()
    pair_S = jnp.where(jnp.arange(places) < kept_E.sum(), order_N[:places], len(expert_N))
    place_MA = jnp.where(inside, position_N, places).reshape(choice_MA.shape)
    out_SD = run_experts(spread(x_MD, pair_S, place_MA), kept_E, kernels)
    y_MD = combine(out_SD, pair_S, place_MA, weights_MA)
    if peers.devices > 1:
        y_MD = jax.lax.psum_scatter(y_MD, peers.axes, scatter_dimension=0, tiled=True)
    return y_MD, _overflow(sizes_E, kept_E)


# --- By buffers of one size ---


def by_all_to_all(
    x_MD: jax.Array, choice_MA: jax.Array, weights_MA: jax.Array, kernels: Kernels, peers: Peers, factor: float
) -> Result:
    """A buffer [X, P, D]: P places for what goes from one device to one other."""
    X, experts = peers.devices, len(kernels.gate)
    expert_N = choice_MA.reshape(-1)
    places = _limit(len(x_MD) * min(choice_MA.shape[1], experts), len(expert_N) // X, factor)
    order_N = jnp.argsort(expert_N, stable=True)
    sizes_XE = count_rows(expert_N, X * experts).reshape(X, experts)
    kept_XE = jax.vmap(cut, (0, None))(sizes_XE, places)
    start_X = _starts(sizes_XE.sum(-1))
    device_N = jnp.minimum(expert_N // experts, X - 1)
    offset_N = invert(order_N) - start_X[device_N]
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
    return combine(back_SD, pair_S, place_MA, weights_MA), _overflow(sizes_XE, kept_XE)


# --- By as many rows as there are ---


def by_ragged(
    x_MD: jax.Array, choice_MA: jax.Array, weights_MA: jax.Array, kernels: Kernels, peers: Peers, factor: float
) -> Result:
    """Rows sorted by expert are sent as they lie; a device has one buffer for all that it receives, in the order of
    senders. Every device knows all sizes, so all agree on who finds no place: the last ones.
    """
    X, experts = peers.devices, len(kernels.gate)
    expert_N = choice_MA.reshape(-1)
    pairs = len(expert_N)
    places = _limit(X * len(x_MD) * min(choice_MA.shape[1], experts), pairs, factor)
    order_N = jnp.argsort(expert_N, stable=True)
    place_MA = invert(order_N).reshape(choice_MA.shape)
    sizes = count_rows(expert_N, X * experts).reshape(1, X, experts)
    sizes_XXE = jax.lax.all_gather(sizes, peers.axes, tiled=True)  # from, to, expert there
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
    return combine(back_ND, order_N, place_MA, weights_MA), _overflow(wanted_XX[me], kept_XX[me])


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
    """`jax.lax.ragged_all_to_all`, or the same by gathering all operands where the platform has none."""
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


# --- Parts ---


def run_experts(rows_SD: jax.Array, sizes_E: jax.Array, kernels: Kernels) -> jax.Array:
    """Rows in groups by expert through their experts; rows behind the groups give zeros."""
    gate, up = (grouped_matmul(rows_SD, kernel, sizes_E) for kernel in kernels[:2])
    return grouped_matmul(gate_silu(gate, up), kernels.down, sizes_E)


def sort_and_run(rows_SD: jax.Array, expert_S: jax.Array, kernels: Kernels) -> jax.Array:
    """Rows in any order, each through its expert (E: none, zeros), in the order they came in."""
    order_S = jnp.argsort(expert_S, stable=True)
    place_S1 = invert(order_S)[:, None]
    out_SD = run_experts(spread(rows_SD, order_S, place_S1), count_rows(expert_S, len(kernels.gate)), kernels)
    return collect(out_SD, order_S, place_S1)[:, 0]


def combine(out_SD: jax.Array, pair_S: jax.Array, place_MA: jax.Array, weights_MA: jax.Array) -> jax.Array:
    """[M, D]: the weighted sum of each token's rows, added up in float32."""
    out_MAD = collect(out_SD, pair_S, place_MA).astype(jnp.float32)
    return (out_MAD * weights_MA[..., None]).sum(1).astype(out_SD.dtype)


def count_rows(expert_N: jax.Array, experts: int) -> jax.Array:
    """[E]: how many rows each expert has; numbers of E and more are nobody's."""
    return (expert_N[:, None] == jnp.arange(experts)).sum(0, dtype=jnp.int32)


def cut(sizes: jax.Array, places: int) -> jax.Array:
    """What of groups one behind the other fits into so many places; an array's axes are read as one."""
    ends = jnp.minimum(jnp.cumsum(sizes.reshape(-1)), places)
    return jnp.diff(ends, prepend=0).reshape(sizes.shape)


def invert(order_N: jax.Array) -> jax.Array:
    """The inverse permutation."""
    return jnp.zeros_like(order_N).at[order_N].set(jnp.arange(len(order_N), dtype=order_N.dtype))


def _starts(sizes: jax.Array) -> jax.Array:
    return jnp.cumsum(sizes) - sizes


def _limit(most: int, mean: int, factor: float) -> int:
    """Places of a buffer: for all that can come, or `factor` times the mean."""
    return max(1, min(most, math.ceil(mean * factor))) if factor else most


def _overflow(sizes: jax.Array, kept: jax.Array) -> jax.Array:
    return (sizes.sum() - kept.sum()).astype(jnp.float32)


# Each place holds one pair at most, so the gradient of a gather is the gather of the opposite direction; autodiff would
# add up rows one by one instead.


@jax.custom_vjp
def spread(x_MD: jax.Array, pair_S: jax.Array, place_MA: jax.Array) -> jax.Array:
    """[S, D]: at each place the row of its pair's token, zeros where there is none."""
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
