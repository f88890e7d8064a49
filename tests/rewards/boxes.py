"""Marks and shorthands for tests that run programs in the sandbox."""

import pytest

from r1jax.sandbox.box import FILES, Box, Limits, find_fault, python_command, run

FAULT = find_fault()
# A machine without bubblewrap skips these tests and says why; it does not pass them.
needs_box = pytest.mark.skipif(FAULT is not None, reason=f"no sandbox on this machine: {FAULT}")


def run_python(source, stdin="", **limits):
    """The outcome of a Python program in the box."""
    files = {"main.py": source.encode()}
    return run(Box(python_command(f"{FILES}/main.py"), stdin.encode(), files, Limits(**limits)))
