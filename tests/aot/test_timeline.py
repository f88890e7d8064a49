"""Predicted seconds from HLO text: each kind of operation at its share, what hides, and loops counted in full."""

import gzip
from pathlib import Path

import pytest

from r1jax.aot.costs import measure
from r1jax.aot.timeline import EFFICIENCY, kind_of_kernel
from r1jax.runs.chips import CHIPS, Chip

CHIP = Chip("x", 1e12, 2**40, 1e9, 1e8, 1e7, 1, 64)
PRODUCT = "  %p = f32[1000,1000]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}\n"
SYNC = "  %g = f32[4000,1000]{1,0} all-gather(%a), replica_groups={{0,1,2,3}}, dimensions={0}\n"
START = (
    "  %s = (f32[1000,1000]{1,0}, f32[4000,1000]{1,0}) all-gather-start(%a), "
    "replica_groups={{0,1,2,3}}, dimensions={0}\n"
    "  %d = f32[4000,1000]{1,0} all-gather-done(%s)\n"
)
COMPUTING, SENDING = 2e9 / (1e12 * EFFICIENCY["products"]), 12e6 / (1e8 * EFFICIENCY["links"])
MEMORY = 12e6 / (1e9 * EFFICIENCY["HBM"])


def make_program(*lines: str) -> str:
    body = "".join(lines)
    return (
        "HloModule m, num_partitions=4\n\nENTRY %main (a: f32[1000,1000], b: f32[1000,1000]) -> f32[1000,1000] {\n"
        "  %a = f32[1000,1000]{1,0} parameter(0)\n  %b = f32[1000,1000]{1,0} parameter(1)\n"
        f"{body}  ROOT %r = f32[1000,1000]{{1,0}} bitcast(%p)\n}}\n"
    )


def test_an_operation_takes_the_longer_of_flops_and_bytes() -> None:
    found = measure(make_program(PRODUCT), chip=CHIP)
    assert found.busy == pytest.approx(max(COMPUTING, MEMORY)) and found.exposed == 0
    assert measure(make_program(PRODUCT)).busy == 0, "without a chip there is no time"


def test_a_synchronous_collective_is_exposed() -> None:
    found = measure(make_program(PRODUCT, SYNC), chip=CHIP)
    assert found.exposed == pytest.approx(SENDING) and found.hidden == 0


def test_an_asynchronous_collective_hides_behind_its_computation() -> None:
    found = measure(make_program(PRODUCT, START), chip=CHIP)
    assert found.exposed + found.hidden == pytest.approx(SENDING)
    assert found.hidden == pytest.approx(found.busy) and 0 < found.hidden < SENDING


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("splash_mha_fwd.3", "attention"),
        ("gmm.1", "grouped"),
        ("tgmm", "grouped"),
        ("ragged_paged_attention", "attention"),
        ("custom-call.7", "other kernels"),
    ],
)
def test_kinds_of_kernels(name: str, kind: str) -> None:
    assert kind_of_kernel(name) == kind and kind in EFFICIENCY


@pytest.mark.parametrize(
    ("name", "chip"), [("train_step_v5e", "v5e"), ("train_step_v5p", "v5p"), ("splash_v6e", "v6e")]
)
def test_a_prediction_is_no_less_than_what_the_peaks_allow_for_operations(name: str, chip: str) -> None:
    text = gzip.decompress((Path(__file__).parent / "programs" / f"{name}.txt.gz").read_bytes()).decode()
    found, rates = measure(text, chip=CHIPS[chip]), CHIPS[chip]
    plain = measure(text)
    assert (found.flops, found.hbm_bytes, found.wire) == (plain.flops, plain.hbm_bytes, plain.wire)
    assert found.busy >= max(found.flops / rates.flops, found.hbm_bytes / rates.hbm_bandwidth)
    whole = found.wire / (rates.ici_bandwidth * EFFICIENCY["links"])
    assert found.exposed + found.hidden == pytest.approx(whole)
