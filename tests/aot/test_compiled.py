"""What is said of compiled programs: memory with all that a run keeps, the roofline, what does not fit and why."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.aot import compiled as subject
from r1jax.aot.compiled import Report, bound_seconds, compile_program, device_bytes
from r1jax.aot.costs import Costs
from r1jax.core.sharding import MeshConfig, make_mesh, replicated, sharding, use_mesh
from r1jax.core.structs import Program
from r1jax.runs.chips import CHIPS, Topology

SLICE = Topology(CHIPS["v5e"], (2, 4))


def small_chip(memory: int) -> Topology:
    return Topology(dataclasses.replace(CHIPS["v5e"], hbm_bytes=memory), (2, 4))


@pytest.fixture(scope="module")
def program() -> Program:
    with use_mesh(make_mesh(MeshConfig(data=1, fsdp=8))):
        shape = (512, 512)
        x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding(("batch", None), shape))
        w = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=replicated())
        return Program("decode", jax.jit(lambda x, w: x @ w), (x, w), 2 * 512.0**3, resident={"kept": x})


def test_figures_of_a_program_are_per_device(program: Program) -> None:
    done = compile_program(program, SLICE)
    part, whole = 512 * 512 * 4 // 8, 512 * 512 * 4
    assert done.fits and done.memory.resident == device_bytes(program.resident) == part
    assert (done.memory.arguments, done.memory.outputs) == (part + whole, part)
    assert done.memory.peak >= sum((done.memory.arguments, done.memory.outputs, done.memory.resident))
    assert done.costs.flops == done.useful_flops == 2 * 512.0**3 / 8


def test_links_between_devices_of_a_torus() -> None:
    """Of a ring of four two neighbours are one link apart, and all of them 4/3 on average."""

    @dataclasses.dataclass(frozen=True)
    class Device:
        coords: tuple[int, ...]
        core: int = 0

    mesh = types.SimpleNamespace(devices=np.array([Device((x, y, 0)) for y in range(2) for x in range(4)], object))
    hops = subject.find_hops(mesh, (4, 2))
    assert hops is not None
    assert [hops([0, 1]), hops([0, 3]), hops([0, 2]), hops([0, 1, 2, 3])] == pytest.approx([1, 1, 2, 4 / 3])
    assert hops(range(8)) == pytest.approx((3 * 4 / 3 + 4 * (1 + 1)) / 7)
    assert subject.find_hops(jax.make_mesh((8,), ("data",)), (4, 2)) is None  # a CPU has no place in a torus


def test_what_does_not_fit_is_told_with_its_cure(program: Program) -> None:
    topology = small_chip(1024**2)
    report = Report(topology)
    report.add("decode", compile_program(program, topology))
    assert not report.fits
    (line,) = report.advice()
    assert line.startswith("decode does not fit: 0.") and "GiB too much of 0.00 GiB" in line
    assert "config.rollout.slots" in line
    assert report.as_dict()["programs"]["decode"]["fits"] is False


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: Ran out of memory on HBM, the total memory required for HLO temporaries "
            "(335.31G) exceeds available HBM (15.75G).",
            int(335.31 * 2**30),
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 97.14G of 95.73G hbm.", int(97.14 * 2**30)),
        ("INTERNAL: something else", None),
    ],
)
def test_a_compiler_that_runs_out_of_hbm(
    program: Program, monkeypatch: pytest.MonkeyPatch, message: str, needed: int | None
) -> None:
    class Failing:
        def lower(self, *args: object) -> None:
            raise jax.errors.JaxRuntimeError(message)

    failing = dataclasses.replace(program, function=Failing())
    if needed is None:
        with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
            compile_program(failing, SLICE)
        return
    done = compile_program(failing, SLICE)
    assert not done.fits and done.memory.peak == needed + done.memory.resident
    report = Report(SLICE)
    report.add("decode", done)
    assert report.as_dict()["programs"]["decode"]["predicted_seconds"] is None


def test_the_roofline_is_the_slowest_of_its_parts() -> None:
    chip = CHIPS["v5p"]
    assert bound_seconds(Costs(flops=chip.flops, hbm_bytes=chip.hbm_bandwidth / 2), chip) == 1
    assert bound_seconds(Costs(hbm_bytes=2 * chip.hbm_bandwidth, wire=chip.ici_bandwidth), chip) == 2
    assert bound_seconds(Costs(wire=3 * chip.ici_bandwidth), chip) == 3
    assert bound_seconds(Costs(wire=chip.dcn_bandwidth, slow_wire=chip.dcn_bandwidth), chip) == 1


def test_every_known_program_has_a_cure() -> None:
    assert {"accumulate", "apply", "logprobs", "prefill", "insert", "decode"} <= set(subject.CURES)
