"""Programs that take memory where no process's size shows it (`hostile_memory.txt`), and how much each may get."""

from pathlib import Path

LIMITS = {"memory_bytes": 64 << 20, "scratch_bytes": 16 << 20, "seconds": 15.0, "cpu_seconds": 5.0, "processes": 8}
# Memory, scratch folder and what is beside it: the kernel's buffers, and what is taken between two looks.
MOST_MIB = 160
PRELUDE = """
import mmap, os, sys, time
MIB, held, kept = 1 << 20, 0, []
def take(size):
    global held
    held += size
    os.write(1, b"%d\\n" % held)
"""
PROGRAMS = {
    name: PRELUDE + source
    for part in Path(__file__).with_suffix(".txt").read_text().split("=== ")[1:]
    for name, _, source in (part.partition("\n"),)
}


def read_held(outcome):
    """MiB that a program got."""
    return int((b"0\n" + outcome.stdout).split()[-1]) >> 20
