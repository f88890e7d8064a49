"""Moments of a run at which to kill it: waits that watch what the run writes, for a place and a random delay in it."""

import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.chaos.spawner import Attempt
from tests.stages.runs import last_step


class Pace(NamedTuple):
    """How long the parts of a run take, in seconds, as seen in the uninterrupted one: the scale of random delays."""

    start: float  # to the first row
    step: float


class Watch:
    """What a run of `steps` steps has on disk at this moment."""

    def __init__(self, workdir: pathlib.Path, steps: int):
        self.workdir, self.steps = workdir, steps
        self.begun = last_step(workdir)

    def list_steps(self) -> list[str]:
        """Names in the folder of checkpoints."""
        try:
            return [path.name for path in (self.workdir / "checkpoints").iterdir()]
        except FileNotFoundError:
            return []

    def find_newest(self) -> int:
        return max((int(name) for name in self.list_steps() if name.isdigit()), default=-1)

    def is_saving(self) -> bool:
        """Whether the temporary folder of a checkpoint is there."""
        return any("tmp" in name for name in self.list_steps())

    def is_sealing(self) -> bool:
        """Whether the newest checkpoint has no checksums yet."""
        newest = self.workdir / "checkpoints" / str(self.find_newest())
        return newest.is_dir() and not (newest / "checksums.0.json").exists()

    def is_in_last_evaluation(self) -> bool:
        """Whether the last step is saved and has no row."""
        return self.find_newest() == self.steps and last_step(self.workdir) < self.steps

    def describe(self) -> str:
        """The part of the run in which it was killed, by what it left."""
        if self.is_in_last_evaluation():
            return "last evaluation"
        if self.is_saving():
            return "writing a checkpoint"
        if self.is_sealing():
            return "writing checksums"
        return "start-up" if last_step(self.workdir) <= self.begun else "steps"


def wait_until(condition: Callable[[], bool], attempt: Attempt, seconds: float = 900) -> bool:
    """Waits for a condition or the end of the run; whether the run still runs."""
    end = time.monotonic() + seconds
    while attempt.poll() is None and not condition():
        assert time.monotonic() < end, "the run neither ends nor gets there"
        time.sleep(0.005)
    return attempt.poll() is None


def wait_for(place: str, draw: Callable[[float, float], float], watch: Watch, pace: Pace, attempt: Attempt) -> bool:
    """Waits for a random moment of a part of the run (start, step, save, seal or evaluation); whether it still runs.

    draw: gives a random number between two.
    """
    if place == "start":
        delay = draw(0, pace.start)
        end = time.monotonic() + delay
        return wait_until(lambda: time.monotonic() > end or last_step(watch.workdir) > watch.begun, attempt)
    reached = {
        "step": lambda: last_step(watch.workdir) > watch.begun,
        "save": watch.is_saving,
        "seal": watch.is_sealing,
        "evaluation": watch.is_in_last_evaluation,
    }[place]
    longest = {"step": 3 * pace.step, "save": 0.1, "seal": 0.02, "evaluation": pace.step}[place]
    if wait_until(reached, attempt):
        time.sleep(draw(0, longest))
    return attempt.poll() is None
