"""One run of a program: its task on stdin, its key in the environment, its result in the last line of its output.

A program that fails, exceeds its time, or gives no result that can be read ends with a fault; whatever it left running
is killed with it. As a process it has our rights, our environment and the current folder. In the sandbox it has
neither network nor files but those that its command names, and reaches the endpoint through a relay (relay.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import IO, Any

from r1jax.environments.harness_config import HarnessConfig
from r1jax.sandbox import box
from r1jax.sandbox.limits import Limits
from r1jax.sandbox.mounts import find_python
from r1jax.serving.harness import relay

MOST_OUTPUT = 1 << 20  # bytes at the end of a program's output in which its result is looked for
MOST_WORDS = 300  # characters of its errors that the log shows


@dataclasses.dataclass(frozen=True)
class End:
    """The end of a program. result: the JSON object in its last line ({}: none). fault: "", or why it does not count:
    time, died, bad result. words: about the fault.
    """

    result: dict[str, Any]
    fault: str = ""
    words: str = ""
    seconds: float = 0.0


class Programs:
    """Runs of the program of a config. endpoint: its address. file: a socket with the same server. pays: whether the
    result must hold a reward.
    """

    def __init__(self, config: HarnessConfig, endpoint: str, file: pathlib.Path, *, pays: bool):
        self.config, self.endpoint, self.file, self.pays = config, endpoint, file, pays
        self._live: set[subprocess.Popen[bytes]] = set()
        if config.isolation == "sandbox":
            box.require_isolation()

    def run(self, task: Mapping[str, Any], key: str, model: str) -> End:
        """Runs the program to its end."""
        begin = time.monotonic()
        text = json.dumps(task, default=str, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        run = self._run_boxed if self.config.isolation == "sandbox" else self._run_process
        try:
            fault, words, output = run(text, {"OPENAI_API_KEY": key, "OPENAI_MODEL": model})
        except OSError as error:
            fault, words, output = "died", f"it cannot be started ({error})", b""
        end = End({}, fault, words) if fault else read_result(output, pays=self.pays)
        return dataclasses.replace(end, seconds=time.monotonic() - begin)

    def kill(self) -> None:
        """Ends all programs that run as processes."""
        for process in [*self._live]:
            _kill_group(process)

    def _run_process(self, task: bytes, variables: dict[str, str]) -> tuple[str, str, bytes]:
        """(fault, words about it, output)."""
        first, *rest = self.config.command
        own = ",".join(filter(None, (os.environ.get("NO_PROXY", ""), "127.0.0.1")))
        variables |= {"OPENAI_BASE_URL": self.endpoint, "NO_PROXY": own, "no_proxy": own}
        with contextlib.ExitStack() as stack:
            given, output, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            given.write(task)
            given.seek(0)
            process = subprocess.Popen(
                [sys.executable if first == "python" else first, *rest],
                stdin=given,
                stdout=output,
                stderr=errors,
                env={**os.environ, **variables},
                start_new_session=True,
            )
            self._live.add(process)
            try:
                code = process.wait(self.config.timeout)
            except subprocess.TimeoutExpired:
                return "time", f"it took longer than {self.config.timeout:g} s", b""
            finally:
                _kill_group(process)
                self._live.discard(process)
            if code:
                return "died", f"exit code {code}: {_read_tail(errors, MOST_WORDS).decode(errors='replace')}", b""
            return "", "", _read_tail(output, MOST_OUTPUT)

    def _run_boxed(self, task: bytes, variables: dict[str, str]) -> tuple[str, str, bytes]:
        """(fault, words about it, output)."""
        limits = Limits(
            self.config.timeout, self.config.timeout, self.config.memory_mb << 20, output_bytes=4 * MOST_OUTPUT
        )
        files = {"relay.py": pathlib.Path(relay.__file__).read_bytes()}
        first, *rest = self.config.command
        command = [find_python() if first == "python" else first]
        for word in rest:
            path = pathlib.Path(word)
            if path.is_file():
                files[path.name] = path.read_bytes()
            command.append(f"{box.FILES}/{path.name}" if path.is_file() else word)
        words = [f"{name}={value}" for name, value in variables.items()]
        whole = box.python_command(f"{box.FILES}/relay.py", *words, *command)
        outcome = box.run(box.Box(whole, task, files, limits, sockets={relay.SOCKET: str(self.file)}))
        if outcome.status == "ok":
            return "", "", outcome.stdout
        told = outcome.stderr[-MOST_WORDS:].decode(errors="replace")
        return "time" if outcome.status == "time" else "died", f"{outcome.status}: {told}", b""


def read_result(output: bytes, *, pays: bool) -> End:
    """The result in the last line of a program's output. pays: whether it must hold a reward."""
    lines = output.decode("utf-8", "replace").strip().splitlines()
    last = lines[-1] if lines else ""
    try:
        result = json.loads(last)
    except (ValueError, RecursionError):
        result = None
    if not isinstance(result, dict):
        rule = 'the last line of its output must be a JSON object with "reward"'
        return End({}, "bad result", f"{rule}, got {last[:100]!r}") if pays else End({})
    reward = result.get("reward")
    is_number = isinstance(reward, (int, float)) and not isinstance(reward, bool) and math.isfinite(reward)
    if not (is_number or (reward is None and ("reward" in result or not pays))):
        return End({}, "bad result", f'"reward" must be a finite number or null, got {str(reward)[:60]!r}')
    return End(result)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read_tail(file: IO[bytes], count: int) -> bytes:
    """The last bytes of a file."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - count))
    return file.read()
