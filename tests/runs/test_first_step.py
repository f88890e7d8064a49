"""The split of the time until a run's first step."""

import jax
import jax.numpy as jnp

from r1jax.runs import first_step
from r1jax.runs.first_step import StartTimes


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_phases_and_compilations_add_up(monkeypatch) -> None:
    clock, compiled = Clock(), []
    monkeypatch.setattr(first_step, "_compiled", compiled)
    times = StartTimes(clock)
    times.begin("connect")
    clock.now = 2.0
    times.enter("load")
    clock.now = 5.0
    compiled.append(1.0)
    times.enter("step")
    clock.now = 12.0
    compiled += [2.0, 3.0]
    assert times.finish() == "first step after 12.0 s: connect 2.0, load 2.0, step 2.0, compile 6.0 (3 programs)"


def test_a_second_run_of_a_process_starts_anew(monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr(first_step, "_compiled", [7.0])
    times = StartTimes(clock)
    times.begin("connect")
    clock.now = 3.0
    times.begin("connect")
    clock.now = 4.0
    assert times.finish() == "first step after 1.0 s: connect 1.0, compile 0.0 (0 programs)"


def test_programs_of_jax_are_counted() -> None:
    times = StartTimes()
    times.begin("step")
    jax.jit(lambda x: x * 3 + 0.1234567)(jnp.ones(7)).block_until_ready()
    words = times.finish()
    assert int(words.split("(")[1].split()[0]) >= 1
