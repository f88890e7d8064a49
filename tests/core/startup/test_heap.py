"""The heap of a run: threads get no arena of their own, unless the user has set a limit."""

import os
import subprocess
import sys

import pytest

from r1jax.core.startup.heap import VARIABLE

CODE = """
import ctypes, re, sys, threading
from r1jax.core.startup.heap import share_arena
shared = share_arena()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
gate = threading.Barrier(5)
def take():
    libc.malloc(1000)  # at once with the others, so that each would need an arena
    gate.wait()
threads = [threading.Thread(target=take) for _ in range(4)]
for thread in threads:
    thread.start()
gate.wait()
print(shared, flush=True)
libc.malloc_stats()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="arenas are those of glibc")
@pytest.mark.parametrize("limit", [None, "3"])
def test_threads_share_one_arena(limit: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {} if limit is None else {VARIABLE: limit}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=True)
    arenas = sum(line.startswith("Arena ") for line in done.stderr.splitlines())
    assert done.stdout.strip() == str(limit is None) and arenas == (1 if limit is None else 3)


def test_free_pages_go_back():
    program = """
import ctypes, psutil
from r1jax.core.startup.heap import give_back
ctypes.CDLL(None).mallopt(-3, 1 << 30)  # no block has a mapping of its own, which its end would free
ctypes.CDLL(None).mallopt(-1, 1 << 30)  # nor does the end of the heap move down by itself
held = [b"x" * 50_000 for _ in range(2000)]
kept = b"x" * 50_000
del held
before = psutil.Process().memory_info().rss
give_back()
print(before - psutil.Process().memory_info().rss)
"""
    freed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(freed) > 50e6
