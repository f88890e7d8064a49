"""Costs of small compiled programs against counts by hand: FLOPs, collectives, traffic; also of programs for TPUs."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from r1jax.aot.costs import measure
from r1jax.aot.hlo import group_members
from r1jax.aot.products import count_taps

PROGRAMS = Path(__file__).parent / "programs"


def compile_text(program: Callable, *args: jax.Array) -> str:
    return jax.jit(program).lower(*args).compile().as_text()


def test_layers_under_a_scan_count_in_full() -> None:
    layers, rows, width, hidden = 7, 8, 16, 32

    def loss(weights: tuple, x: jax.Array) -> jax.Array:
        layer = lambda x, w: (x + jnp.tanh(x @ w[0]) @ w[1], None)
        return (jax.lax.scan(layer, x, weights)[0] ** 2).sum()

    weights = (jnp.ones((layers, width, hidden)), jnp.ones((layers, hidden, width)))
    product = 2 * rows * width * hidden
    forward = measure(compile_text(loss, weights, jnp.ones((rows, width))))
    assert forward.flops == 2 * product * layers and not forward.unknown_loops
    both = measure(compile_text(jax.grad(loss), weights, jnp.ones((rows, width))))
    assert both.flops == 3 * 2 * product * layers


def test_loops_are_counted_with_and_without_the_compilers_note() -> None:
    inner = lambda x, _: (jnp.sin(x @ x), None)
    outer = lambda x, _: (jax.lax.scan(inner, x, None, length=3)[0], None)
    text = compile_text(lambda x: jax.lax.scan(outer, x, None, length=5)[0], jnp.ones((4, 4)))
    without = re.sub(r'"known_trip_count":\{[^}]*\},?', "", text)
    assert "known_trip_count" in text
    assert measure(text).flops == measure(without).flops == 5 * 3 * 2 * 4**3


def test_an_open_ended_loop_counts_once_and_is_named() -> None:
    program = lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)
    costs = measure(compile_text(program, jnp.ones((4, 4))))
    assert costs.flops == 2 * 4**3 and sum(costs.unknown_loops.values()) == 1


def test_a_branch_counts_as_its_dearest() -> None:
    program = lambda x, p: jax.lax.cond(p, lambda x: x @ x, lambda x: x @ x @ x, x)
    assert measure(compile_text(program, jnp.ones((32, 32)), jnp.array(True))).flops == 2 * 2 * 32**3


def test_traffic_of_a_product_is_its_operands_and_result() -> None:
    costs = measure(compile_text(lambda a, b: a @ b, jnp.ones((256, 128)), jnp.ones((128, 64))))
    assert costs.hbm_bytes == 4 * (256 * 128 + 128 * 64 + 256 * 64)


def test_traffic_of_an_update_in_place_is_what_it_writes() -> None:
    text = """
%fused (old: f32[100,8], new: f32[1,8], at: s32[]) -> f32[100,8] {
  %old = f32[100,8]{1,0} parameter(0)
  %new = f32[1,8]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %updated = f32[100,8]{1,0} dynamic-update-slice(%old, %new, %at, %zero)
}

ENTRY %main (old: f32[100,8], new: f32[1,8], at: s32[]) -> f32[100,8] {
  %old = f32[100,8]{1,0} parameter(0)
  %new = f32[1,8]{1,0:S(1)} parameter(1)
  %at = s32[] parameter(2)
  ROOT %fusion = f32[100,8]{1,0} fusion(%old, %new, %at), kind=kLoop, calls=%fused
}
"""
    assert measure(text).hbm_bytes == 8 * 4 + 4  # the row written and the position; the new row is on the chip


def test_traffic_of_a_slice_in_a_fusion_inside_is_the_slice() -> None:
    text = """
%inner (stack: f32[100,8], at: s32[]) -> f32[1,8] {
  %stack = f32[100,8]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,8]{1,0} dynamic-slice(%stack, %at, %zero), dynamic_slice_sizes={1,8}
}

%outer (stack: f32[100,8], at: s32[]) -> f32[1,8] {
  %stack = f32[100,8]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %layer = f32[1,8]{1,0} fusion(%stack, %at), kind=kLoop, calls=%inner
  ROOT %twice = f32[1,8]{1,0} add(%layer, %layer)
}

ENTRY %main (stack: f32[100,8], at: s32[]) -> f32[1,8] {
  %stack = f32[100,8]{1,0} parameter(0)
  %at = s32[] parameter(1)
  ROOT %fusion = f32[1,8]{1,0} fusion(%stack, %at), kind=kLoop, calls=%outer
}
"""
    assert measure(text).hbm_bytes == 8 * 4 + 8 * 4 + 4  # the layer read, the row written, the position


def test_a_kernel_reads_no_more_than_it_says() -> None:
    text = """
ENTRY %main (stack: f32[100,8], x: f32[8]) -> f32[8] {
  %stack = f32[100,8]{1,0} parameter(0)
  %x = f32[8]{0} parameter(1)
  ROOT %kernel.1 = f32[8]{0} custom-call(%stack, %x), custom_call_target="tpu_custom_call", backend_config={ESTIMATE}
}
"""
    estimate = '"custom_call_config":{"cost_estimate":{"flops":"64","transcendentals":"0","bytes_accessed":"96"}}'
    assert measure(text.replace("ESTIMATE", estimate)).hbm_bytes == 96
    assert measure(text.replace("ESTIMATE", estimate.replace('"96"', '"9600"'))).hbm_bytes == (800 + 8 + 8) * 4


def test_an_all_to_all_costs_its_bytes_times_the_links_that_they_pass() -> None:
    mesh = Mesh(np.array(jax.devices()), ("all",), axis_types=(AxisType.Auto,))
    swap = lambda x: jax.lax.all_to_all(x, "all", 0, 0, tiled=True)
    text = compile_text(jax.shard_map(swap, mesh=mesh, in_specs=P("all"), out_specs=P("all")), jnp.ones((64, 16)))
    once, thrice = (measure(text, hops=lambda members, links=links: links * len(members) / 8) for links in (1.0, 3.0))
    assert thrice.wire == 3 * once.wire == 3 * 7 / 8 * 8 * 16 * 4
    assert measure(text, slices=2, hops=lambda members: 3.0).wire == once.wire  # between slices there is no torus


@pytest.mark.parametrize("slices", [1, 2])
def test_collectives_of_eight_devices(slices: int) -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def program(x: jax.Array) -> jax.Array:
        def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            whole = jax.lax.all_gather(x, "model", tiled=True)
            part = jax.lax.psum_scatter(whole * 2, "model", tiled=True)
            return jnp.sin(jax.lax.ppermute(part, "model", [(i, (i + 1) % 4) for i in range(4)])), None

        x = jax.lax.scan(step, x, None, length=3)[0]
        return jax.lax.psum(x, "data")

    inside = jax.shard_map(program, mesh=mesh, in_specs=P(("data", "model")), out_specs=P("model"), check_vma=False)
    costs = measure(compile_text(inside, jnp.ones((64, 16), jnp.float32)), slices)
    mine = 64 // 8 * 16 * 4
    counts = {"all-gather": 3, "reduce-scatter": 3, "collective-permute": 3, "all-reduce": 1}
    assert costs.collective_counts == counts
    payload = {"all-gather": 3 * 4 * mine, "reduce-scatter": 3 * 4 * mine, "collective-permute": 3 * mine}
    assert costs.collective_bytes == {**payload, "all-reduce": mine}
    assert costs.wire == 3 * (3 + 3 + 1) * mine + mine
    assert costs.slow_wire == (mine if slices == 2 else 0)


OF_ONE_SLICE = """HloModule jit_f, is_scheduled=true, num_partitions=4

ENTRY %main (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0} parameter(0)
  %inside = f32[8,128]{1,0} all-reduce(%p), channel_id=3, replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=%add
  %token = token[] after-all()
  %send = (f32[8,128]{1,0}, u32[], token[]) send(%inside, %token), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[8,128]{1,0}, u32[], token[]) recv(%token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=1, is_host_transfer=true
  %received = (f32[8,128]{1,0}, token[]) recv-done(%recv), channel_id=2, is_host_transfer=true
  ROOT %sum = f32[8,128]{1,0} get-tuple-element(%received), index=0
}
"""  # noqa: E501


def test_a_module_of_one_slice_sends_to_the_others_through_its_host() -> None:
    """As the TPU's compiler writes it for two slices of four devices each."""
    costs = measure(OF_ONE_SLICE, slices=2, devices=8)
    payload = 8 * 128 * 4
    assert costs.collective_counts == {"all-reduce": 2} and costs.collective_bytes == {"all-reduce": 2 * payload}
    assert costs.slow_wire == payload and costs.wire == payload + 2 * payload * 3 / 4


def test_the_buffer_of_an_exchange_is_the_largest_of_those_asked_for() -> None:
    """Of two exchanges in a loop the larger one; one that the partitioner makes to move an array is none."""
    mesh = Mesh(np.array(jax.devices()), ("all",), axis_types=(AxisType.Auto,))

    def program(x: jax.Array) -> jax.Array:
        def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            small = jax.lax.all_to_all(x[:, :2], "all", 0, 0, tiled=True)
            return jax.lax.all_to_all(x, "all", 0, 0, tiled=True) + small.sum(), None

        return jax.lax.scan(step, x, None, length=3)[0]

    inside = jax.shard_map(program, mesh=mesh, in_specs=P("all"), out_specs=P("all"), check_vma=False)
    costs = measure(compile_text(inside, jnp.ones((512, 16), jnp.float32)))
    assert costs.exchange_buffer == 512 // 8 * 16 * 4 and costs.collective_counts["all-to-all"] == 6
    move = lambda x: jax.lax.with_sharding_constraint(x * 2, NamedSharding(mesh, P(None, "all")))
    moved = measure(compile_text(move, jax.device_put(jnp.ones((512, 16)), NamedSharding(mesh, P("all")))))
    assert moved.collective_counts["all-to-all"] == 1 and moved.exchange_buffer == 0


def read_program(name: str) -> str:
    return gzip.decompress((PROGRAMS / f"{name}.txt.gz").read_bytes()).decode()


@pytest.mark.parametrize("chip", ["v5e", "v5p"])
def test_a_train_step_for_a_tpu(chip: str) -> None:
    """tests/aot/programs/README.md says what it is. The scheduler writes one gather in several fusions: once."""
    costs = measure(read_program(f"train_step_{chip}"))
    layers, product = 6, 2 * 512 * 1024 * 4096 // 4
    assert costs.flops == 7 * product * layers and not costs.unknown_loops  # 2 forward, 4 backward, 1 recomputed
    assert costs.collective_counts["all-gather"] == 2 * 2 * layers
    assert costs.collective_counts["reduce-scatter"] == 2 * layers
    weight = 1024 * 4096 * 2
    moved = costs.collective_bytes["all-gather"] + costs.collective_bytes["all-to-all"]
    assert 3 * layers * weight < moved < 4.2 * layers * weight
    assert 2 * layers * weight <= costs.collective_bytes["reduce-scatter"] < 2.2 * layers * weight


def test_the_kernels_of_splash_attention() -> None:
    """Nine products a pair: two forward, four for dk and dv, three for dq; half of the pairs are masked."""
    costs = measure(read_program("splash_v6e"))
    pair = 2 * 2 * 16 * 8192**2 / 2  # the rows and heads of one device
    assert costs.flops == costs.kernel_flops == pair * ((192 + 128) + (2 * 192 + 2 * 128) + (2 * 192 + 128))
    assert sum(costs.kernels.values()) == 3 and not costs.unpriced


def test_taps_equal_a_count_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        inputs, outputs, size = rng.integers(1, 9, 3).tolist()
        stride, dilation, window = rng.integers(1, 6, 3).tolist()
        padding = int(rng.integers(-3, 7))
        at = [o * stride + k * window - padding for o in range(outputs) for k in range(size)]
        expected = sum(0 <= p <= (inputs - 1) * dilation and p % dilation == 0 for p in at)
        taps = count_taps(
            inputs, outputs, size, stride=stride, padding=padding, input_dilation=dilation, window_dilation=window
        )
        assert taps == expected


def test_a_batched_product_written_as_a_convolution() -> None:
    """A TPU's form of BTH,BSH->BTS: the batch is a window of its own size that meets one element a position."""
    text = """
ENTRY %main (q: bf16[5,16,8], k: bf16[5,24,8]) -> bf16[5,16,24] {
  %q = bf16[5,16,8]{2,1,0} parameter(0)
  %k = bf16[5,24,8]{2,1,0} parameter(1)
  ROOT %scores = bf16[5,16,24]{2,1,0} convolution(%q, %k), window={size=5 stride=4 lhs_dilate=5}, \
dim_labels=0bf_0oi->0bf
}
"""
    assert measure(text).flops == 2 * 5 * 16 * 24 * 8


def test_kernels_by_their_estimate_by_formula_or_named_as_unknown() -> None:
    text = """
ENTRY %main (q: bf16[2,4,256,192], k: bf16[2,4,256,192], v: bf16[2,4,256,128]) -> bf16[2,4,256,128] {
  %q = bf16[2,4,256,192]{3,2,1,0} parameter(0)
  %k = bf16[2,4,256,192]{3,2,1,0} parameter(1)
  %v = bf16[2,4,256,128]{3,2,1,0} parameter(2)
  %odd.3 = bf16[2,4,256,128]{3,2,1,0} custom-call(%q, %k), custom_call_target="tpu_custom_call"
  %gmm.1 = bf16[2,4,256,128]{3,2,1,0} custom-call(%odd.3, %k), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"..","cost_estimate":{"flops":"1000","bytes_accessed":"8"}}}
  ROOT %splash_mha_fwd.2 = bf16[2,4,256,128]{3,2,1,0} custom-call(%q, %k, %v), custom_call_target="tpu_custom_call"
}
"""
    costs = measure(text)
    assert costs.kernels == {"odd": 1, "gmm": 1, "splash_mha_fwd": 1} and costs.unpriced == {"odd": 1}
    assert costs.flops == costs.kernel_flops == 1000 + 2 * 2 * 4 * 256 * 256 * (192 + 128) / 2


@pytest.mark.parametrize(
    ("attributes", "members"),
    [
        ("replica_groups={{0,2},{1,3}}, x=1", [0, 2]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [0, 4]),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", [0, 2]),
        ("source_target_pairs={{0,1},{1,2},{2,0}}", [2, 0]),
        ("channel_id=1", list(range(8))),
    ],
)
def test_groups_of_devices(attributes: str, members: list[int]) -> None:
    assert group_members(attributes, 8) == members
