"""Two real processes of which one fails: both end soon, with one exit code, and each names the cause."""

import re
import subprocess
import sys
import time

import pytest

from r1jax.core.errors import LOST, MISTAKE, PREEMPTED, STALLED
from r1jax.core.processes import failures
from tests.core.test_distributed import start_two

PROGRAM = """
import os, signal, sys, time
import jax, numpy as np
from absl import flags
from r1jax.core import distributed
from r1jax.core.commands import run_command
from r1jax.core.errors import UserError
from r1jax.core.processes.agreement import agree, agree_on_data
from r1jax.core.watchdog import Watchdog

def action(_):
    distributed.start()
    kind, index = sys.argv[1].split("-")[0], int(os.environ["R1JAX_PROCESS_ID"])
    odd = index == int(sys.argv[1].split("-")[1])
    if kind == "config":
        agree("config", "b" if odd else "a", {"steps": 1, "seed": 7 if odd else 1})
    if kind == "data":
        agree_on_data([{"prompt": "a"}], [{"prompt": "b" if odd else "c"}])
    with Watchdog(0.05 if odd and kind == "hangs" else 10):
        for step in range(1000):
            distributed.wait(f"step {step}")
            if step == 3 and odd:
                if kind == "raises": raise ValueError("the reward is broken")
                if kind == "mistake": raise UserError("the file is gone")
                if kind == "killed": os.kill(os.getpid(), signal.SIGKILL)
                if kind == "terminated": os.kill(os.getpid(), signal.SIGTERM)
                if kind == "hangs": time.sleep(600)

sys.exit(run_command("", flags.FlagValues(), [], action, computes=False))
"""

# kind -> exit code of both, the line of the one that fails, the line of the other
ENDS = {
    "raises": (
        1,
        r"ValueError: the reward is broken",
        r"error: process {} of 2 ended: ValueError: the reward is broken",
    ),
    "mistake": (MISTAKE, r"error: the file is gone", r"error: process {} of 2 ended: the file is gone"),
    "terminated": (PREEMPTED, r"stopped by SIGTERM", r"error: process {} of 2 ended: what is on file is kept"),
    "hangs": (
        STALLED,
        r"error: no progress .*\n(.*\n)*.*time\.sleep|in action",
        r"error: process {} of 2 ended: no prog",
    ),
}


def run_two(kind: str, odd: int) -> tuple[list[int], list[str], float]:
    """Exit codes, logs and seconds of two processes of which `odd` differs."""
    begin, processes = time.monotonic(), start_two(PROGRAM, f"{kind}-{odd}")
    try:
        logs = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], logs, time.monotonic() - begin


@pytest.mark.parametrize(
    ("kind", "odd"),
    [
        ("raises", 1),
        *(
            pytest.param(kind, odd, marks=pytest.mark.slow)
            for kind in ENDS
            for odd in (0, 1)
            if (kind, odd) != ("raises", 1)
        ),
    ],
)
def test_a_failure_of_one_process_ends_both_with_its_cause(kind: str, odd: int) -> None:
    codes, logs, seconds = run_two(kind, odd)
    code, own, told = ENDS[kind]
    assert codes == [code, code], logs
    assert re.search(own, logs[odd]), logs[odd]
    assert re.search(told.format(odd + 1), logs[1 - odd]), logs[1 - odd]
    if kind == "hangs":
        assert all("Thread 0x" in log for log in logs)
    assert seconds < 60


@pytest.mark.slow
@pytest.mark.parametrize("odd", [0, 1])
def test_a_killed_process_is_named_by_the_other(odd: int) -> None:
    codes, logs, seconds = run_two("killed", odd)
    assert codes[odd] == -9 and codes[1 - odd] in (LOST, -6)
    # If it was the first, jax's own line may be faster: it ends the process.
    jax_line = "|the leader task was preempted/died" if odd == 0 else ""
    assert re.search(f"process {odd + 1} of 2 died or lost its connection{jax_line}", logs[1 - odd])
    assert seconds < 60


@pytest.mark.parametrize(("kind", "odd"), [("data", 1), pytest.param("config", 0, marks=pytest.mark.slow)])
def test_processes_that_differ_end_at_once_and_name_it(kind: str, odd: int) -> None:
    codes, logs, _ = run_two(kind, odd)
    assert codes == [MISTAKE, MISTAKE], logs
    what = f"the processes of a run need the same {kind}, but process 2 of 2 has another than process 1 of 2"
    for log in logs:
        assert what in log and log.count("error: ") == 1
        assert kind == "data" or "(config.seed: 1 and 7)" in log


def test_a_process_alone_has_nobody_to_tell() -> None:
    assert failures.is_alone() and failures.tell(1, "") == []
    failures.leave(1, "")  # returns
    failures.leave_by_error(ValueError())


def test_the_store_of_failures_needs_no_jax_to_be_imported() -> None:
    code = "import r1jax.core.commands, sys; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
