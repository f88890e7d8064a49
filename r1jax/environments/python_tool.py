"""A Python tool: programs that the model writes run in the sandbox, without network, files or state between calls."""

from __future__ import annotations

from typing import Any

from r1jax.sandbox.box import FILES, Box, python_command, require_isolation, run
from r1jax.sandbox.limits import Limits

SECONDS = 5.0
_LIMITS = Limits(SECONDS, SECONDS, memory_bytes=256 << 20, output_bytes=64 << 10)


class PythonTool:
    """Runs Python. Attributes for rewards: runs, failures."""

    def __init__(self) -> None:
        require_isolation()

    def reset(self, **row: Any) -> None:
        """Begins a trajectory."""
        self.runs = self.failures = 0

    def python(self, code: str) -> str:
        """Runs a Python program and returns what it prints.

        Args:
            code: A whole program; it must print its result. Nothing is kept between calls.

        Returns:
            What it wrote to stdout, then its errors.
        """
        self.runs += 1
        box = Box(
            python_command(f"{FILES}/main.py"), files={"main.py": code.encode("utf-8", "replace")}, limits=_LIMITS
        )
        outcome = run(box)
        text = outcome.stdout.decode("utf-8", "replace")
        if outcome.status == "ok":
            return text.strip() or "(it printed nothing)"
        self.failures += 1
        if outcome.status == "failed":
            lines = outcome.stderr.decode("utf-8", "replace").strip().splitlines()
            return f"{text}{lines[-1] if lines else 'the program failed'}"
        return f"{text}the program was ended: {outcome.status}"
