"""Experts spread over eight pretend devices: every way of exchange is the dense reference, forward and gradient."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from r1jax.core.distributed import put_global
from r1jax.core.errors import UserError
from r1jax.core.sharding import MeshConfig, make_mesh, sharding, use_mesh
from r1jax.models import dispatch, exchange
from r1jax.models.dispatch import Dispatch
from r1jax.models.exchange import Kernels, Peers
from tests.models.toy import assert_close
from tests.threads import run_in_thread

B, T, D, F, E, A = 8, 6, 8, 12, 8, 3
AXES = {
    "x": ("batch", "sequence", None),
    "weights": ("batch", "sequence", None),
    "gate": ("experts", "expert_embed", "expert_mlp"),
    "up": ("experts", "expert_embed", "expert_mlp"),
    "down": ("experts", "expert_mlp", "expert_embed"),
}
MESHES = {
    "expert": MeshConfig(data=1, expert=8),
    "mixed": MeshConfig(data=1, fsdp=2, expert=2, tensor=2),
    "context": MeshConfig(data=1, expert=4, context=2),
    "whole": MeshConfig(data=2, fsdp=2, tensor=2),
}
CHOICES = ("spread", "one", "few", "padded")


def draw_choices(kind: str) -> np.ndarray:
    """[B, T, A]; "one": all tokens to the same three experts, "few": to experts of one device, E: none."""
    draw = np.random.default_rng(0)
    choice = np.stack([draw.permutation(E)[:A] for _ in range(B * T)]).reshape(B, T, A)
    if kind == "one":
        choice[:] = [6, 1, 4]
    elif kind == "few":
        choice[:], choice[..., 1:] = 3, E
    elif kind == "padded":
        choice[:, 4:], choice[2] = E, E
    return choice


@functools.cache
def arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    shapes = {"x": (B, T, D), "weights": (B, T, A), "gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}
    return {name: draw.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


@functools.cache
def program(chosen: Dispatch, mesh: str) -> Any:
    """Compiled once for all choices: (y, gradients of everything, overflow)."""
    along = np.random.default_rng(2).normal(size=(B, T, D)).astype(np.float32)

    def loss(arrays: dict[str, jax.Array], choice: jax.Array) -> Any:
        kernels = Kernels(*(arrays[name] for name in ("gate", "up", "down")))
        y, overflow = chosen(arrays["x"], choice, arrays["weights"], kernels)
        return (y * along).sum(), (y, overflow)

    return jax.jit(jax.grad(loss, has_aux=True))


def run(way: str, kind: str, factor: float = 0.0, mesh: str = "", tokens: int = 0) -> Any:
    """(y, gradients, overflow) on a mesh, or on one device."""
    with use_mesh(make_mesh(MESHES[mesh])) if mesh else contextlib.nullcontext():
        placed = put_global(arrays(), {name: sharding(AXES[name], array.shape) for name, array in arrays().items()})
        gradient, (y, overflow) = program(Dispatch(way, factor, tokens), mesh)(placed, draw_choices(kind))
        return jax.device_get((y, gradient, overflow))


@functools.cache
def reference(kind: str) -> Any:
    return run("dense", kind)


@pytest.mark.parametrize("kind", CHOICES)
@pytest.mark.parametrize("mesh", ["expert", "mixed", "context"])
@pytest.mark.parametrize("way", ["all_to_all", "ragged", "all_gather"])
def test_every_way_of_exchange_equals_the_dense_reference(way: str, mesh: str, kind: str) -> None:
    """Within 1e-5 of each tensor's norm, also when all tokens want one expert and others get none; nothing drops."""
    *found, overflow = run(way, kind, mesh=mesh)
    expected = reference(kind)
    assert_close(tuple(found), expected[:2], 1e-5)
    assert overflow == 0


def test_grouped_on_a_mesh_without_spread_experts_and_with_one_row() -> None:
    """Where nothing is exchanged, and where a batch of one row is whole on every device."""
    *found, _ = run("grouped", "spread", mesh="whole")
    assert_close(tuple(found), reference("spread")[:2], 1e-5)
    kernels = Kernels(*(arrays()[name] for name in ("gate", "up", "down")))
    one = [array[:1] for array in (arrays()["x"], draw_choices("spread"), arrays()["weights"])]
    with use_mesh(make_mesh(MESHES["expert"])):
        y, overflow = jax.jit(lambda *args: Dispatch()(*args, kernels))(*one)
    assert_close(y, reference("spread")[0][:1])
    assert overflow == 0


def test_experts_in_a_thread_without_a_layout_are_an_error() -> None:
    """They would otherwise take the way of one device, with all experts at each."""
    kernels = Kernels(*(arrays()[name] for name in ("gate", "up", "down")))
    ask = lambda: jax.eval_shape(Dispatch(), arrays()["x"], draw_choices("spread"), arrays()["weights"], kernels)
    with use_mesh(make_mesh(MESHES["expert"])):
        expected = ask()
        with pytest.raises(RuntimeError, match="has entered no layout"):
            run_in_thread(ask)
    assert run_in_thread(ask) == expected


@pytest.mark.parametrize(("mesh", "tokens"), [("", 10), ("expert", 4)], ids=["filled", "mesh"])
def test_tokens_that_travel_in_turns_come_to_the_same(mesh: str, tokens: int) -> None:
    """Five turns of 10 for 48 tokens, and two of 3 for the 6 of each device."""
    *found, overflow = run("grouped", "padded", mesh=mesh, tokens=tokens)
    assert_close(tuple(found), reference("padded")[:2], 1e-5)
    assert overflow == 0


@pytest.mark.parametrize("way", ["all_to_all", "ragged", "all_gather"])
def test_a_bounded_buffer_counts_what_it_drops(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs to one device: 1.5 times the mean of 8 devices holds 3/16 of them; what remains is exact or zero."""
    monkeypatch.setattr(dispatch, "FEW_TOKENS", 0)
    y, _, overflow = run(way, "few", 1.5, "expert")
    share = np.abs(y - reference("few")[0]).max(-1) < 1e-5
    empty = ~y.any(-1)
    # a device has 6 tokens of 3 choices, two of them none: the mean of a pair of devices is 18 // 8 = 2 rows
    held = {"all_to_all": 8 * 3, "ragged": 27, "all_gather": 27}[way]
    assert overflow == B * T - held and (share | empty).all() and (share & ~empty).sum() == held


def test_few_tokens_have_room_whatever_the_bound() -> None:
    *found, overflow = run("grouped", "few", 1.25, "expert")
    assert_close(tuple(found), reference("few")[:2], 1e-5)
    assert overflow == 0


@functools.cache
def forward(chosen: Dispatch, mesh: str) -> Any:
    """Compiled once for all choices: (y, overflow)."""
    kernels = lambda arrays: Kernels(*(arrays[name] for name in Kernels._fields))
    return jax.jit(lambda arrays, choice: chosen(arrays["x"], choice, arrays["weights"], kernels(arrays)))


def run_forward(chosen: Dispatch, kind: str, mesh: str, rules: dict[str, Any] | None = None) -> Any:
    with use_mesh(make_mesh(MESHES[mesh]), rules):
        placed = put_global(arrays(), {name: sharding(AXES[name], array.shape) for name, array in arrays().items()})
        return jax.device_get(forward(chosen, f"{mesh} {bool(rules)}")(placed, draw_choices(kind)))


@pytest.mark.parametrize("kind", CHOICES)
@pytest.mark.parametrize("way", ["all_to_all", "ragged"])
def test_what_finds_no_place_travels_in_a_further_turn(way: str, kind: str) -> None:
    """To the bit what unbounded buffers give, whoever had to wait; the overflow tells that somebody did."""
    whole, _ = run_forward(Dispatch(way), kind, "expert")
    y, overflow = run_forward(Dispatch(way, 0.5, complete=True), kind, "expert")
    np.testing.assert_array_equal(y, whole)
    assert_close(y, reference(kind)[0], 1e-5)
    assert overflow > 0
    y, overflow = run_forward(Dispatch(way, 8.0, complete=True), kind, "expert")
    np.testing.assert_array_equal(y, whole)
    assert overflow == 0


def test_a_complete_exchange_by_all_gather_needs_no_further_turn() -> None:
    y, overflow = run_forward(Dispatch("all_gather", 0.5, complete=True), "few", "expert")
    assert_close(y, reference("few")[0], 1e-5)
    assert overflow == 0


@pytest.mark.parametrize("kind", CHOICES)
def test_devices_that_share_the_width_of_experts_bring_their_rows_together(kind: str) -> None:
    """As in rollouts: each row at one device, experts over two axes, their width over a third."""
    rules = {"batch": ("fsdp", "expert", "tensor"), "experts": ("tensor", "expert"), "expert_mlp": "fsdp"}
    y, _ = run_forward(Dispatch("grouped", 1.25, complete=True), kind, "mixed", {**rules, "expert_embed": None})
    assert_close(y, reference(kind)[0], 1e-5)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_ragged_exchange_lowers_where_the_platform_has_it(platform: str) -> None:
    """Forward and backward hold the collective, for a platform that is not here."""
    mesh = make_mesh(MESHES["expert"])

    def shard(x: jax.Array, choice: jax.Array, weights: jax.Array, *kernels: jax.Array) -> jax.Array:
        peers = Peers(("expert",), 8, True)
        return exchange.by_ragged(x, choice, weights, Kernels(*kernels), peers, 0.0)[0]

    spec = PartitionSpec("expert")
    run = jax.shard_map(shard, mesh=mesh, in_specs=(spec,) * 6, out_specs=spec, check_vma=False)
    loss = lambda x, choice, *rest: run(x, choice, *rest).sum()
    flat = {name: arrays()[name].reshape(-1, arrays()[name].shape[-1]) for name in ("x", "weights")}
    args = (flat["x"], draw_choices("spread").reshape(-1, A), flat["weights"], *(arrays()[n] for n in Kernels._fields))
    text = jax.jit(jax.grad(loss, (0, 3))).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("ragged_all_to_all") >= 3


def test_impossible_buffers_and_experts_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="dispatch 'dense' cannot have a buffer_factor of 1.0"):
        Dispatch("dense", 1.0)
    with pytest.raises(UserError, match="dispatch 'dense' cannot exchange 8 tokens at a time"):
        Dispatch("dense", tokens=8)
    kernels = Kernels(*(arrays()[name][:6] for name in ("gate", "up", "down")))
    with (
        use_mesh(make_mesh(MESHES["context"])),
        pytest.raises(
            UserError, match="^experts: dimension 'experts' of size 6 must be divisible .* config.mesh.expert"
        ),
    ):
        Dispatch()(jnp.asarray(arrays()["x"]), jnp.asarray(draw_choices("one")), arrays()["weights"], kernels)
