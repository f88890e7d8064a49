"""Verdicts on small runs: a sampler that differs, bits that differ, a step against the compiler's figures."""

import dataclasses

import pytest

from r1jax.checkup.small_run import DIFFERENCE, Expected, Outcome, check_bits, check_sampler, check_step, vowels_reward

ROW = {DIFFERENCE: 1e-7, "loss": 0.5, "time/rollout": 1.0, "time/train": 2.0, "step_time": 3.0}
RUN = Outcome([ROW, ROW], [b"abc", b"def"])


def test_a_sampler_that_differs_or_is_no_number_is_wrong() -> None:
    assert check_sampler(RUN).verdict == "right"
    for value in (1e-3, float("nan")):
        found = check_sampler(dataclasses.replace(RUN, rows=[ROW, {**ROW, DIFFERENCE: value}]))
        assert found.verdict == "wrong" and found.cure


def test_bits_are_those_of_metrics_without_timings_and_of_all_arrays() -> None:
    later = dataclasses.replace(RUN, rows=[ROW, {**ROW, "time/train": 2.5}])
    assert check_bits(RUN, later).verdict == "right"
    other = check_bits(RUN, dataclasses.replace(RUN, rows=[ROW, {**ROW, "loss": 0.25}]))
    assert other.verdict == "wrong" and other.figures["differing_metrics"] == ["loss"]
    other = check_bits(RUN, dataclasses.replace(RUN, params=[b"abc", b"xyz"]))
    assert other.verdict == "wrong" and "1 of 2 arrays" in other.text and "deterministic_ops" in other.cure


@pytest.mark.parametrize(
    ("sampling", "peak", "words"),
    [(0.5, 3 * 2**30, ""), (0.5, 5 * 2**30, "more memory"), (5.0, 2**30, "sampling is faster than possible")],
)
def test_a_step_against_the_compiler(sampling: float, peak: int, words: str) -> None:
    expected = Expected({"sampling": sampling, "updating": 0.1}, 3 * 2**30)
    found = check_step(dataclasses.replace(RUN, peak=peak), lambda: expected)
    assert found.verdict == ("wrong" if words else "right") and words in found.text
    assert found.figures["phases"]["sampling"] == {"seconds": 1.0, "bound_seconds": sampling}


def test_the_reward_spreads() -> None:
    assert vowels_reward(["aeio", "xyz1", ""]) == [1.0, 0.0, 0.0]
