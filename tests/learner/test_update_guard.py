import math

import pytest

from r1jax.core.errors import DivergedError
from r1jax.learner.update_guard import LEAST, GuardsConfig, UpdateGuard


def test_what_is_not_finite_is_skipped_until_there_is_too_much(caplog: pytest.LogCaptureFixture) -> None:
    guard = UpdateGuard(GuardsConfig(max_skipped=3))
    verdicts = [guard.admit(norm) for norm in (1.0, math.nan, math.inf, 1.0, -math.inf, math.nan)]
    assert verdicts == [True, False, False, True, False, False]
    assert guard.take_metrics() == {"guards/skipped_updates": 4.0} and guard.take_metrics() == {}
    with pytest.raises(
        DivergedError, match=r"^3 updates in a row have no finite gradient \(config.guards.max_skipped\)"
    ):
        guard.admit(math.nan)
    assert "the gradient's norm is nan: update skipped (2 in a row)" in caplog.text


@pytest.mark.parametrize(("spikes", "made"), [("log", True), ("skip", False)])
def test_a_spike_stands_out_from_the_norms_before_it(spikes: str, made: bool, caplog: pytest.LogCaptureFixture) -> None:
    guard = UpdateGuard(GuardsConfig(spike_factor=10, spikes=spikes))  # type: ignore[arg-type]
    assert guard.admit(1e6), "the first norms have nothing to be compared with"
    guard = UpdateGuard(guard.config)
    assert all(guard.admit(1 + i / 100) for i in range(LEAST))
    assert guard.admit(9.0) and guard.take_metrics() == {}
    assert guard.admit(1e3) is made
    expected = {"guards/spikes": 1.0} | ({} if made else {"guards/skipped_updates": 1.0})
    assert guard.take_metrics() == expected and "is a spike" in caplog.text
    assert UpdateGuard(GuardsConfig(spike_factor=0)).admit(1e30)
    guard = UpdateGuard(guard.config)
    assert all(guard.admit(0.0) for _ in range(LEAST)), "nothing is left to learn"
    assert guard.admit(1e-9) and guard.take_metrics() == {}


def test_a_resumed_guard_decides_alike() -> None:
    whole, part = UpdateGuard(GuardsConfig(spikes="skip")), UpdateGuard(GuardsConfig(spikes="skip"))
    for i in range(2 * LEAST):
        whole.admit(1.0 + i)
    whole.admit(math.nan)
    part.set_state(whole.get_state())
    for norm in (math.nan, 100.0, 1e4, 1e4):
        assert part.admit(norm) is whole.admit(norm)
    assert part.get_state() == whole.get_state()
