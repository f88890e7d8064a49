"""Rates of pretend devices, and verdicts on rates that the table of chips expects otherwise."""

import jax
import pytest

from r1jax.checkup import rates
from r1jax.runs.chips import CHIPS, Chip, find_chip

TINY = rates.Sizes(matrix=64, array=2**16, sent=2**14, repeats=2, runs=1)


def test_rates_without_a_table_are_measured() -> None:
    for name, check in {"FLOPs": rates.check_flops, "HBM": rates.check_memory, "links": rates.check_links}.items():
        found = check(TINY)
        assert (found.name, found.verdict) == (name, "measured") and found.figures["measured"][0] > 0
        assert "the table has no cpu" in found.text


def test_one_device_has_no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert rates.check_links(TINY).verdict == "skipped"


@pytest.mark.parametrize(("share", "verdict"), [(0.1, "wrong"), (0.4, "right")])
def test_a_link_at_a_tenth_of_its_speed_is_wrong(share: float, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chip = CHIPS["v5e"]
    monkeypatch.setattr(rates, "find_chip", lambda kind: chip)
    monkeypatch.setattr(rates, "measure_links", lambda sizes: share * chip.ici_bandwidth)
    found = rates.check_links(TINY)
    assert found.verdict == verdict and f"{share:.0%} of the table's 200 (v5e)" in found.text
    assert bool(found.cure) == (verdict == "wrong")


def test_a_slow_device_among_fast_ones_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = Chip("x", 100e12, 1, 1e12, 1e11, 1e10, 1, 8)
    speeds = iter([90e12, 91e12, 60e12, 90e12])
    monkeypatch.setattr(rates, "find_chip", lambda kind: chip)
    monkeypatch.setattr(rates, "_choose_devices", lambda: jax.local_devices()[:4])
    monkeypatch.setattr(rates, "measure_flops", lambda device, sizes: next(speeds))
    found = rates.check_flops(TINY)
    assert found.verdict == "wrong" and "device 2 has 60 TFLOP/s" in found.text


def test_kinds_of_devices_are_known() -> None:
    kinds = {"TPU v5 lite": "v5e", "TPU v5p": "v5p", "TPU v5": "v5p", "TPU v6 lite": "v6e", "NVIDIA H200": "h200"}
    for kind, name in kinds.items():
        chip = find_chip(kind)
        assert chip is not None and chip.name == name
    assert find_chip("cpu") is None
