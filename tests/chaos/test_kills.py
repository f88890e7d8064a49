"""SFT, GRPO and others, one with an environment, killed at random moments, some aimed at the writing of a checkpoint,
at its checksums and at the last evaluation, and stopped by SIGTERM: started again, each ends with the bits of the
uninterrupted run.

R1JAX_TEST_KILLS and R1JAX_TEST_TERMS times each (5 and 2).
"""

import collections
import itertools
import os
import pathlib
import random
import shutil
import signal
import time
from typing import NamedTuple

import pytest

from r1jax.core.errors import DONE, PREEMPTED
from tests.chaos.moments import Pace, Watch, wait_for
from tests.chaos.spawner import Attempt, Spawner
from tests.stages import runs
from tests.stages.episodes import EPISODES
from tests.stages.runs import CONFIG, assert_same_run, last_step

STEPS = 12
FLAGS = [
    f"--config.steps={STEPS}",
    "--config.checkpoint.every_steps=2",
    "--config.eval.every_steps=5",
    "--config.log.tensorboard=false",
]
TALK = {**EPISODES, "environment": "tests.environments.toys:SlowTalker"}  # which takes a random time for each answer
OWN = {
    "sft": [],
    "grpo": ["--config.train.updates_per_step=2"],
    "dpo": [],
    "reward_model": [],
    "episodes": [f"--config.{key.replace('__', '.')}={value}" for key, value in TALK.items()],
}
PREFERENCES = f"{CONFIG.parent}/preferences/tiny_preferences.py"
PLACES = ["save", "step", "evaluation", "start", "save", "step", "seal", "step", "start", "save"]
KILLS, TERMS = (int(os.environ.get(f"R1JAX_TEST_{name}", number)) for name, number in (("KILLS", 5), ("TERMS", 2)))

pytestmark = pytest.mark.slow


class Whole(NamedTuple):
    """The uninterrupted run of a stage, by the command itself, and the flags that start it again elsewhere."""

    stage: str
    workdir: pathlib.Path
    flags: list[str]
    pace: Pace


@pytest.fixture(scope="module", params=list(OWN))
def whole(request: pytest.FixtureRequest, tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    stage = request.param
    own = f"{PREFERENCES}:{stage}" if stage in ("dpo", "reward_model") else CONFIG.with_name(f"tiny_{stage}.py")
    own = CONFIG if stage == "episodes" else own
    workdir, config = tmp_path_factory.mktemp(stage) / "run", own
    flags, begun = [*FLAGS, *OWN[stage]], time.monotonic()
    process = runs.start(tiny_model, workdir, *flags, config=config)
    while last_step(workdir) < 1 and process.poll() is None:
        time.sleep(0.05)
    first = time.monotonic()
    assert process.wait(900) == DONE, workdir.with_suffix(".log").read_text()
    pace = Pace(first - begun, (time.monotonic() - first) / STEPS)
    return Whole(stage, workdir, [f"--config={config}", f"--config.model.name={tiny_model}", *flags], pace)


def assert_whole(attempt: Attempt, workdir: pathlib.Path, whole: Whole) -> None:
    """Checks a run that came to its end, and clears the workdir for the next."""
    log = workdir.with_suffix(".log")
    assert attempt.wait() == DONE, log.read_text()
    lines = log.read_text().splitlines()  # Python drops an exception of a signal's handler within a callback of its own
    traces = [before for before, line in itertools.pairwise(["", *lines]) if line.startswith("Traceback")]
    assert all(line.startswith("Exception ignored in") for line in traces), log.read_text()
    assert_same_run(workdir, whole.workdir)
    assert not (workdir / "checkpoints.damaged").exists()
    for path in (workdir, *workdir.parent.glob(f"{workdir.name}.earlier-*")):
        shutil.rmtree(path)


def test_killed_at_any_moment_it_ends_with_the_same_bits(
    spawner: Spawner, whole: Whole, tmp_path: pathlib.Path
) -> None:
    draw, workdir, found = random.Random(whole.stage), tmp_path / "run", collections.Counter[str]()
    rounds = 0
    while found.total() < KILLS:
        place = PLACES[found.total() % len(PLACES)]
        watch = Watch(workdir, STEPS)
        with spawner.start(workdir, *whole.flags) as attempt:
            if not wait_for(place, draw.uniform, watch, whole.pace, attempt):
                assert_whole(attempt, workdir, whole)
                rounds += 1
                continue
            attempt.send(signal.SIGKILL)
            if attempt.wait() == -signal.SIGKILL:
                found[watch.describe()] += 1
    with spawner.start(workdir, *whole.flags) as attempt:
        assert_whole(attempt, workdir, whole)
    print(
        f"{whole.stage}: {found.total()} kills, {dict(found)}; {rounds + 1} runs came to their end with the same bits"
    )


def test_stopped_by_sigterm_it_says_so_and_loses_at_most_a_step(
    spawner: Spawner, whole: Whole, tmp_path: pathlib.Path
) -> None:
    draw, workdir, found = random.Random(whole.stage), tmp_path / "run", collections.Counter[str]()
    while found.total() < TERMS:
        watch = Watch(workdir, STEPS)
        with spawner.start(workdir, *whole.flags) as attempt:
            place = draw.choice(["step", "step", "save", "evaluation", "start"])
            if not wait_for(place, draw.uniform, watch, whole.pace, attempt):
                assert_whole(attempt, workdir, whole)
                continue
            seen = last_step(workdir)
            attempt.send(signal.SIGTERM)
            if (code := attempt.wait(120)) == DONE:  # it was past its last step
                assert_whole(attempt, workdir, whole)
                continue
        assert code == PREEMPTED, (place, workdir.with_suffix(".log").read_text())
        assert "stopped by SIGTERM: " in workdir.with_suffix(".log").read_text().splitlines()[-1]
        assert max(watch.find_newest(), 0) >= seen - 1, (place, seen)  # at most one step is lost
        found[place] += 1
    with spawner.start(workdir, *whole.flags) as attempt:
        assert_whole(attempt, workdir, whole)
    print(f"{whole.stage}: {found.total()} times SIGTERM, {dict(found)}")
