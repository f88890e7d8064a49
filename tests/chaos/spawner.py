"""A process that has imported r1jax and forks a child for every run: a start without the seconds of its imports.

    python -m tests.chaos.spawner

It reads `{"arguments", "log", "environment"}` as lines of JSON, one run at a time, and answers with the child's process
id at once and with its exit code (negative: a signal) at its end. The child runs the command's main to the end of
Python; no device was opened before the fork. No kill falls into the imports, which touch no file of a run.
"""

import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
from typing import Any

from tests.environment import make_xla_flags

ROOT = pathlib.Path(__file__).parents[2]


class Attempt:
    """One run of the command `train`, which may be killed; used as a context it never outlives the body."""

    def __init__(self, spawner: "Spawner", process: int):
        self._spawner, self.process = spawner, process
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self._code is None and not self._spawner.answers.empty():
            self._code = self._spawner.answers.get()
        return self._code

    def wait(self, seconds: float = 900) -> int:
        if self._code is None:
            self._code = self._spawner.answers.get(timeout=seconds)
        return self._code

    def send(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.process, number)

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, *_: object) -> None:
        self.send(9)
        self.wait()


class Spawner:
    """The forking process, for tests; its runs have one device."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.spawner"],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": make_xla_flags(1)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answers: queue.Queue[int] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.answers.put(int(line))

    def start(self, workdir: pathlib.Path, *flags: str, **environment: str) -> Attempt:
        """`r1jax.train --workdir=WORKDIR` with more flags; its output goes to WORKDIR.log."""
        assert self._process.stdin
        order = {"arguments": [f"--workdir={workdir}", *flags], "log": f"{workdir}.log", "environment": environment}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Attempt(self, self.answers.get(timeout=300))

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)


def serve() -> list[str]:
    """Serves orders until the input ends. Returns in every child, with the arguments of its command, and in the parent
    at the end, with none.
    """
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        child = os.fork()
        if not child:
            log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.update(order["environment"])
            return ["train", *order["arguments"]]
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return []


if __name__ == "__main__":
    import r1jax.train
    from r1jax.stages import grpo, sft  # noqa: F401
    from r1jax.stages.pipeline import pipeline  # noqa: F401

    if arguments := serve():
        sys.argv = arguments
        sys.modules["__main__"].__package__ = "r1jax"  # as in `python -m r1jax.train`
        sys.exit(r1jax.train.main(arguments))
