"""Dispatch of tokens to their experts and back: one signature, several methods, the same results.

    Dispatch(way)(x [B, T, D], choice [B, T, A], weights [B, T, A], kernels) -> (y [B, T, D], overflow)

y is the sum over a token's A selected experts of weight * down(silu(gate(x)) * up(x)). A choice of E or more means no
expert: padding tokens have only such choices, cost nothing and give zeros.

dense           every expert on every token, then a selection; the reference, and as expensive as it sounds. grouped
rows sorted by expert, one grouped matrix product (models/ops/grouped_matmul.py). Where the mesh
                shards experts, the exchange that the platform supports: ragged on TPU and GPU, else all_to_all.
all_to_all      rows travel to their experts' devices and back in buffers of equal size per pair of devices. ragged
the same with one buffer for everything that a device receives (`jax.lax.ragged_all_to_all`; emulated
                by an all-gather on CPU, which lacks it, for tests).
all_gather      rows of all devices are gathered, each device adds its experts' results, and the sums are scattered.

Under a mesh all methods except `dense` run as per-device programs (models/exchange.py): the rule for "experts" in
`config.mesh.rules` names the axes of the devices that exchange rows; hidden widths may be sharded over other axes,
whose partial results are summed.

A rollout's layout may also split the experts' width over devices that hold different rows: these rows are gathered and
their sums scattered.

No token is dropped unless `buffer_factor` is set: buffers then hold that multiple of the perfectly balanced load, and
`overflow` counts the (token, expert) pairs that did not fit. Batches of few tokens per device (decoding) are never
bounded: their loads are too uneven for any such multiple, and exact buffers are small. With `complete`, which has no
gradient, every batch is bounded and none drops a token: what finds no place travels in a further turn, and `overflow`
counts what the first turn left.

Buffers hold A rows or more per token. `tokens` bounds them: that many tokens of a device are exchanged at a time, and
the backward pass recomputes each turn instead of keeping its buffers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from r1jax.core.errors import UserError
from r1jax.core.sharding import current_mesh, partition
from r1jax.models import exchange
from r1jax.models.exchange import ClampedKernels, Kernels, Peers
from r1jax.models.stacks import StackedLayer, read

EXCHANGES: dict[str, Callable] = {
    "all_to_all": exchange.by_all_to_all,
    "ragged": exchange.by_ragged,
    "all_gather": exchange.by_all_gather,
}
TURNS: dict[str, Callable] = {"all_to_all": exchange.exchange_equal, "ragged": exchange.exchange_sorted}
WAYS = ("dense", "grouped", *EXCHANGES)
FEW_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """Dispatch method and its buffer limits.

    way: one of WAYS. buffer_factor: buffer size over the mean load (0: unbounded). tokens: tokens of a device exchanged
    at a time (0: all). complete: whether pairs that do not fit travel in further turns. Raises UserError for an unknown
    way, and for limits with `dense`.
    """

    way: str = "grouped"
    buffer_factor: float = 0.0
    tokens: int = 0
    complete: bool = False

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise UserError(f"config.model.dispatch must be one of {', '.join(WAYS)}, got {self.way!r}")
        if self.buffer_factor < 0 or (self.buffer_factor and self.way == "dense"):
            raise UserError(f"dispatch {self.way!r} cannot have a buffer_factor of {self.buffer_factor}")
        if self.tokens < 0 or (self.tokens and self.way == "dense"):
            raise UserError(f"dispatch {self.way!r} cannot exchange {self.tokens} tokens at a time")

    def __call__(
        self, x_BTD: jax.Array, choice_BTA: jax.Array, weights_BTA: jax.Array, kernels: Kernels
    ) -> tuple[jax.Array, jax.Array]:
        """Output y [B, T, D], and the number of dropped pairs: float32, over all devices."""
        B, T, D = x_BTD.shape
        E, _, F = kernels.gate.shape
        chex.assert_shape(choice_BTA, (B, T, None), custom_message="choices must be [B, T, A] for tokens [B, T, D]")
        chex.assert_equal_shape([choice_BTA, weights_BTA], custom_message="each choice must have one weight")
        chex.assert_shape(
            kernels[:3], [(E, D, F), (E, D, F), (E, F, D)], custom_message="kernels of experts: gate, up, down"
        )
        if self.way == "dense":
            return run_dense(x_BTD, choice_BTA, weights_BTA, kernels), jnp.zeros(())
        mesh = current_mesh()
        if mesh is None or mesh.size == 1:
            run = self._program(Peers((), 1, False), (), type(kernels))
            return run(x_BTD, choice_BTA, weights_BTA, *kernels)
        return self._run_on(mesh, x_BTD, choice_BTA, weights_BTA, kernels)

    def _run_on(
        self, mesh: Mesh, x_BTD: jax.Array, choice_BTA: jax.Array, weights_BTA: jax.Array, kernels: Kernels
    ) -> tuple[jax.Array, jax.Array]:
        tokens = partition(("batch", "sequence", None), x_BTD.shape, mesh, name="experts' input")
        inward = partition(("experts", None, "expert_mlp"), kernels.gate.shape, mesh, name="experts")
        outward = PartitionSpec(inward[0], inward[2], None)
        over, hidden = _names(inward[0]), _names(inward[2])
        native = mesh.devices.flat[0].platform != "cpu"
        run = self._program(Peers(over, exchange.size(mesh, over), native), mesh.axis_names, type(kernels))
        if isinstance(kernels, ClampedKernels) and (parts := exchange.size(mesh, hidden)) > 1:
            kernels = kernels._replace(down_bias=read(kernels.down_bias) / parts)  # each part of a width adds its share
        shared = tuple(axis for axis in hidden if axis in _names(tokens[0]))
        hidden = tuple(axis for axis in hidden if axis not in shared)

        def run_shard(*args: Any) -> tuple[jax.Array, jax.Array]:
            rows, weights = args[:3], args[3:]
            if shared:
                rows = tuple(jax.lax.all_gather(x, shared, axis=0, tiled=True) for x in rows)
            y, overflow = run(*rows, *weights)
            spread = tuple(
                axis for axis in dict.fromkeys((*_names(tokens[0]), *_names(tokens[1]), *over)) if axis not in shared
            )
            y = jax.lax.psum(y, hidden) if hidden else y
            y = jax.lax.psum_scatter(y, shared, scatter_dimension=0, tiled=True) if shared else y
            return y, jax.lax.psum(overflow, spread) if spread else overflow

        gate_bias, down_bias = PartitionSpec(inward[0], inward[2]), PartitionSpec(inward[0], None)
        placed_as = (inward, inward, outward, gate_bias, gate_bias, down_bias)
        weights = map(_specs_of, kernels, placed_as[: len(kernels)])
        specs = (tokens, tokens, tokens, *weights)
        placed = jax.shard_map(
            run_shard, mesh=mesh, in_specs=specs, out_specs=(tokens, PartitionSpec()), check_vma=False
        )
        return placed(x_BTD, choice_BTA, weights_BTA, *kernels)

    def _program(self, peers: Peers, everybody: tuple[str, ...], make: Any) -> Callable:
        """The program of one device. everybody: all axes of the mesh; make: the class of the kernels."""
        way = self.way
        if way == "grouped":
            way = "all_gather" if peers.devices == 1 else "ragged" if peers.native else "all_to_all"

        def run(x_BTD: jax.Array, choice: jax.Array, weights: jax.Array, *kernels: Any) -> tuple:
            flat = tuple(array.reshape(-1, array.shape[-1]) for array in (x_BTD, choice, weights))
            factor = self.buffer_factor if len(flat[0]) > FEW_TOKENS else 0.0
            send = lambda *flat: EXCHANGES[way](*flat, make(*kernels), peers, factor)
            if self.complete and way in TURNS:
                one = lambda x, choice: TURNS[way](x, choice, make(*kernels), peers, self.buffer_factor)
                send = lambda *flat: exchange.exchange_all(one, flat, len(kernels[0]) * peers.devices, everybody)
            elif self.complete:
                send = lambda *flat: EXCHANGES[way](*flat, make(*kernels), peers, 0.0)
            if 0 < self.tokens < len(flat[0]):
                y_MD, overflow = take_turns(send, flat, self.tokens, nobody=len(kernels[0]) * peers.devices)
            else:
                y_MD, overflow = send(*flat)
            return y_MD.reshape(x_BTD.shape), overflow

        return run


GROUPED = Dispatch()


def take_turns(
    send: Callable[..., tuple[jax.Array, jax.Array]], flat: tuple[jax.Array, ...], tokens: int, *, nobody: int
) -> tuple[jax.Array, jax.Array]:
    """`send(x [M, D], choice [M, A], weights [M, A])` over at most `tokens` rows at a time; padding rows of the last
    turn choose `nobody`.
    """
    rows = len(flat[0])
    turns = -(-rows // tokens)
    size = -(-rows // turns)
    fill = lambda array, value: jnp.pad(array, ((0, turns * size - rows), (0, 0)), constant_values=value)
    pieces = [fill(array, value).reshape(turns, size, -1) for array, value in zip(flat, (0, nobody, 0), strict=True)]
    turn = jax.checkpoint(lambda piece: send(*piece), policy=jax.checkpoint_policies.nothing_saveable)
    y_UMD, overflow_U = jax.lax.map(turn, tuple(pieces))
    return y_UMD.reshape(turns * size, -1)[:rows], overflow_U.sum()


def run_dense(x_BTD: jax.Array, choice_BTA: jax.Array, weights_BTA: jax.Array, kernels: Kernels) -> jax.Array:
    """Every expert on every token."""
    kernels = type(kernels)(*map(read, kernels))
    chosen_BTAE = choice_BTA[..., None] == jnp.arange(len(kernels.gate))
    weights_BTE = jnp.where(chosen_BTAE, weights_BTA[..., None], 0).sum(-2)
    gate, up = (jnp.einsum("BTD,EDF->BTEF", x_BTD, kernel) for kernel in kernels[:2])
    if isinstance(kernels, ClampedKernels):
        hidden = exchange.gate_clamped(gate + kernels.gate_bias, up + kernels.up_bias)
        out_BTED = jnp.einsum("BTEF,EFD->BTED", hidden, kernels.down) + kernels.down_bias
    else:
        out_BTED = jnp.einsum("BTEF,EFD->BTED", kernels.mix(gate, up), kernels.down)
    return jnp.einsum("BTED,BTE->BTD", out_BTED.astype(jnp.float32), weights_BTE).astype(x_BTD.dtype)


def _specs_of(kernel: Any, spec: PartitionSpec) -> Any:
    """Specs of a kernel that is an array, or a layer inside the stack of all."""
    if not isinstance(kernel, StackedLayer):
        return spec
    of_parts: Any = StackedLayer
    return of_parts(PartitionSpec(None, *spec), PartitionSpec())


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Mesh axes of one dimension of a PartitionSpec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
