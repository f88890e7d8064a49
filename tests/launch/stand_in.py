"""The stand-in cloud of tests/launch/standin as a fixture's object."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "standin"
SECRET = "hf_this-is-the-secret"
FLAGS = ("--name=r1", "--type=v6e-8", "--zone=z", "--bucket=gs://cheese")


class StandIn:
    """A cloud in a folder, and launch/tpu_pod.py against it."""

    def __init__(self, folder: Path, wheel: Path):
        self.folder, self.wheel = folder, wheel
        self.opened: list[subprocess.Popen] = []
        for name in ("hosts", "gone", "started", "buckets/cheese"):
            (folder / name).mkdir(parents=True)
        self.write("state.json", {"request": None, "queue": [None, "WAITING_FOR_RESOURCES", "ACTIVE"]})
        self.hosts("r1-w-0", "r1-w-1")
        self.write("environment.json", {})
        self.plan()
        self.train("echo training; exit 0")
        (folder / "calls").touch()

    def write(self, name: str, value: object) -> None:
        (self.folder / name).write_text(json.dumps(value))

    def state(self) -> dict:
        return json.loads((self.folder / "state.json").read_text())

    def hosts(self, *names: str, **state: object) -> None:
        """Names of the hosts, and other fields of the state."""
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.write("state.json", {**self.state(), "hosts": names, **state})

    def plan(self, *events: tuple[str, str]) -> None:
        """Actions that happen at the first call each expression finds; see standin/gcloud."""
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.write("plan.json", events)

    def train(self, script: str) -> None:
        """What each host plays as r1jax.train."""
        (self.folder / "train").write_text(script)

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    def verbs(self) -> list[str]:
        return [" ".join(call[2:4]) for call in self.calls()]

    def started(self) -> list[str]:
        """Hosts on which the run was started, in order."""
        return [path.read_text().splitlines()[0] for path in sorted((self.folder / "started").iterdir())]

    def logs(self) -> str:
        """The logs in the workdir."""
        return "".join(path.read_text() for path in sorted((self.workdir / "logs").glob("*.log")))

    @property
    def workdir(self) -> Path:
        return self.folder / "buckets" / "cheese" / "runs" / "r1"

    def environment(self) -> dict[str, str]:
        own = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}  # it would reach the hosts
        return {
            **own,
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "STANDIN": str(self.folder),
            "HF_TOKEN": SECRET,
            "LIBTPU_INIT_ARGS": "--a=1 --b=2",
        }

    def command(self, verb: str, *flags: str, train: tuple[str, ...] = ("--config=configs/x.py",)) -> list[str]:
        own = [f"--folder={self.folder / 'launch'}", "--poll-seconds=0.1", "--settle=2"]
        if verb in ("run", "pack"):
            own += [f"--wheel={self.wheel}", *(() if "--check" in flags else ("--no-check",))]
        given = [flag for flag in flags if flag != "--check"]
        return [sys.executable, str(ROOT / "launch" / "tpu_pod.py"), verb, *FLAGS, *own, *given, "--", *train]

    def run(self, verb: str = "run", *flags: str, **options: object) -> subprocess.CompletedProcess:
        """One command line, to its end; stdout and stderr together."""
        return subprocess.run(
            self.command(verb, *flags, **options),
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )

    def open(self, verb: str = "run", *flags: str, **options: object) -> subprocess.Popen:
        self.opened.append(
            subprocess.Popen(
                self.command(verb, *flags, **options),
                env=self.environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return self.opened[-1]

    def until(self, condition: Callable[[], bool], seconds: int = 120) -> None:
        """Waits, so many seconds at most."""
        for _ in range(10 * seconds):
            if condition():
                return
            time.sleep(0.1)
        raise AssertionError("it did not happen")

    def end(self) -> None:
        """Ends what runs here and on the hosts."""
        for process in self.opened:
            process.kill()
            process.wait()
        for session in self.folder.glob("hosts/*/r1jax-*/session"):
            try:
                os.killpg(int(session.read_text()), signal.SIGKILL)
            except (ProcessLookupError, ValueError):
                pass
