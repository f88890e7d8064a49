"""Findings of several processes as one, and checks that raise."""

import pytest

from r1jax.checkup.findings import Finding, join_findings, run_check

RIGHT = Finding("HBM", "right", "800 GB/s", figures={"measured": [8e11]})
SLOW = Finding("HBM", "wrong", "80 GB/s", "exchange it", {"measured": [8e10]})


def test_one_wrong_host_is_named_with_the_cure() -> None:
    joined = join_findings([RIGHT, SLOW, RIGHT], ["a", "b", "c"])
    assert (joined.verdict, joined.text, joined.cure) == ("wrong", "b: 80 GB/s", "exchange it")
    assert joined.figures == {"a": RIGHT.figures, "b": SLOW.figures, "c": RIGHT.figures}
    assert joined.line().splitlines() == ["HBM          WRONG     b: 80 GB/s", " " * 23 + "cure: exchange it"]


def test_what_is_wrong_everywhere_is_said_once() -> None:
    assert join_findings([SLOW, SLOW], ["a", "b"]).text == "80 GB/s"
    assert join_findings([RIGHT, RIGHT], ["a", "b"]).verdict == "right"
    assert join_findings([SLOW], ["a"]) == SLOW


def test_a_check_that_raises_found_something_wrong() -> None:
    def fail() -> Finding:
        raise RuntimeError("no such\n device")

    found = run_check("links", fail)
    assert (found.name, found.verdict) == ("links", "wrong")
    assert found.text == "the check ended with RuntimeError: no such device"
    with pytest.raises(KeyboardInterrupt):
        run_check("links", lambda: (_ for _ in ()).throw(KeyboardInterrupt))  # type: ignore[arg-type]
