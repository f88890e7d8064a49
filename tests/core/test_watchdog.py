import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from r1jax.core import watchdog
from r1jax.core.errors import STALLED

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, threading, time
from r1jax.core.watchdog import Watchdog, beat

def wait_for_a_reply_that_never_comes():
    time.sleep(120)

threading.Thread(target=wait_for_a_reply_that_never_comes, daemon=True).start()
with Watchdog(minutes=2 / 60):
    for _ in range(40):  # four seconds of progress
        time.sleep(0.1)
        beat()
    print("progressed", flush=True)
    if sys.argv[1] == "hang":
        wait_for_a_reply_that_never_comes()
time.sleep(3)  # nothing is watched any more
print("ended", flush=True)
"""


@pytest.mark.parametrize(("way", "code"), [("hang", STALLED), ("end", 0)])
def test_a_process_that_hangs_says_where_and_ends(way: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, way], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == code and done.stdout.startswith("progressed")
    if way == "hang":
        assert "config.watchdog_minutes" in done.stderr and "ended" not in done.stdout
        assert done.stderr.count("wait_for_a_reply_that_never_comes") >= 2, "both threads are shown"
    else:
        assert not done.stderr and "ended" in done.stdout


def test_a_compilation_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """jax's own functions are looked for by name, so this fails where a new jax renames them."""
    from jax._src import compiler

    seen, compile_ = [], compiler.backend_compile_and_load

    def look(*args: object, **options: object) -> object:
        seen.append(watchdog.is_compiling())
        return compile_(*args, **options)

    monkeypatch.setattr(compiler, "backend_compile_and_load", look)
    constant = time.time()  # a program that no cache holds
    jax.jit(lambda x: x * constant)(jnp.ones(7)).block_until_ready()
    assert seen and all(seen) and not watchdog.is_compiling()
