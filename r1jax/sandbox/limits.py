"""Limits of one run in the sandbox, and its outcome."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "failed", "compile", "time", "memory", "processes", "output", "unstarted"]


@dataclass(frozen=True)
class Limits:
    """Resource limits of one run: seconds of wall time, and of CPU time of all processes together, bytes, and processes
    (threads not counted).
    """

    seconds: float = 5.0
    cpu_seconds: float = 5.0
    memory_bytes: int = 512 << 20
    scratch_bytes: int = 64 << 20
    output_bytes: int = 4 << 20
    processes: int = 32


@dataclass(frozen=True)
class Outcome:
    """Result of a run: `ok` is exit code 0, `failed` any other code or a signal, other statuses name the exceeded
    limit.
    """

    status: Status
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    seconds: float
