"""The command `python -m r1jax.serve` as a process."""

from __future__ import annotations

import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Command:
    """Context with a running server; `port` is its port, `name` the model's for clients.

    log: lines that it wrote. environment: variables beside those of this process.
    """

    def __init__(
        self, model: str | pathlib.Path, *flags: str, port: int = 0, environment: Mapping[str, str] | None = None
    ):
        self.name = pathlib.Path(model).name.removesuffix(".gguf")
        for flag in flags:
            if flag.startswith("--name="):
                self.name = flag.partition("=")[2]
        self.log: list[str] = []
        command = [sys.executable, "-m", "r1jax.serve", f"--model={model}", f"--port={port}", *flags]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.port = self._find_port()
        while True:  # it tells its address before it listens
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=10).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        threading.Thread(target=lambda: self.log.extend(self._lines), daemon=True).start()

    @property
    def address(self) -> str:
        """Base of its URLs."""
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """Ends it without a word."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def _find_port(self) -> int:
        assert self.process.stderr is not None
        self._lines = iter(self.process.stderr)
        text = ""
        for line in self._lines:
            self.log.append(line)
            text += line.strip()
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/v1", text):
                return int(found[1])
        raise RuntimeError(f"the server did not start: {text[-2000:]}")
