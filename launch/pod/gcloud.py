"""The cloud by the gcloud command: queued resources, and ssh to the hosts of their slices."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pod.bundle import ARCHIVE, ENVIRONMENT
from pod.states import DELETING, FAILED, GONE, READY, TAKEN, UNKNOWN, WAITING, CloudError, Host, View

QUICK, LONG = 90.0, 1800.0  # seconds: of a question, of an installation
OPTIONS = ("ServerAliveInterval=15", "ServerAliveCountMax=4", "ConnectTimeout=30")
SSH = tuple(f"--ssh-flag=-o{option}" for option in OPTIONS)
REQUEST_STATES = {
    "ACTIVE": READY,
    "FAILED": FAILED,
    "SUSPENDED": TAKEN,
    "SUSPENDING": TAKEN,
    "DELETING": DELETING,
}  # all others (ACCEPTED, WAITING_FOR_RESOURCES, PROVISIONING, CREATING) are on the way
LIVE: set[subprocess.Popen[bytes]] = set()  # commands under way
NODE_STATES = {"READY": READY} | dict.fromkeys(("PREEMPTED", "TERMINATED", "STOPPED", "STOPPING", "DELETING"), TAKEN)


@dataclass(frozen=True)
class Slice:
    """The request, as on the command line; see launch/tpu_pod.py."""

    name: str
    zone: str
    type: str = ""
    runtime: str = ""
    project: str = ""
    bucket: str = ""
    slices: int = 1
    capacity: str = ""  # --spot, --reserved or nothing

    @property
    def nodes(self) -> list[str]:
        """Names of the slices."""
        return [self.name] if self.slices == 1 else [f"{self.name}-{index}" for index in range(self.slices)]

    @property
    def folder(self) -> str:
        """The folder on the hosts, in the user's home."""
        return f"r1jax-{self.name}"


class Gcloud:
    """The machine's view of the world (pod.machine.Cloud) through `gcloud compute tpus`.

    `prepare` makes folder/bundle.tgz and folder/env, which are shipped; env is deleted after each installation.
    """

    def __init__(self, slice_: Slice, folder: Path, prepare: Callable[[], None]):
        self.slice, self.folder, self.prepare = slice_, folder, prepare
        self.host_counts: dict[str, int] = {}

    def observe(self) -> View:
        request = self._describe("queued-resources", self.slice.name)
        if isinstance(request, View):
            return request
        state = request.get("state", {})
        view = REQUEST_STATES.get(state.get("state", ""), WAITING)
        if view == FAILED:
            return View(FAILED, _reason(state))
        if view != READY:
            return View(view, state.get("state", ""))
        for node in self.slice.nodes:
            description = self._describe("tpu-vm", node)
            if isinstance(description, View):
                return View(TAKEN, f"{node} is gone") if description.state == GONE else description
            self.host_counts[node] = len(description.get("networkEndpoints", [])) or 1
            found = NODE_STATES.get(description.get("state", ""), WAITING)
            if found != READY:
                return View(found, f"{node}: {description.get('state')}")
        return View(READY)

    def create(self) -> str:
        done = call(self.create_command(), QUICK)
        return "" if done.returncode == 0 else words(done)

    def delete(self) -> None:
        call(self.delete_command(), LONG)

    def hosts(self) -> list[Host] | None:
        found: list[Host] = []
        for node, done in self._each(lambda node: self.ssh(node, self.host_command("status")), QUICK):
            if done.returncode:
                return None
            answers = [
                Host(name, state, int(code), attempt)
                for name, state, code, attempt in re.findall(
                    r"^@r1jax (\S+) (none|running|ended|lost) (\d+) (\S*)$", done.stdout, re.MULTILINE
                )
            ]
            if len({host.name for host in answers}) < self.host_counts.get(node, 1):
                return None
            found += answers
        return found

    def install(self) -> None:
        try:
            self.prepare()
            for commands, seconds in self.install_commands():
                self._must(commands, seconds)
        finally:
            (self.folder / ENVIRONMENT).unlink(missing_ok=True)

    def start(self, attempt: str) -> None:
        self._must(lambda node: self.ssh(node, self.host_command("start", attempt)), QUICK)

    def stop(self) -> None:
        self._each(lambda node: self.ssh(node, self.host_command("stop")), 400.0)

    def save(self) -> bool:
        results = self._each(lambda node: self.ssh(node, self.host_command("save")), 300.0)
        return all(done.returncode == 0 for _, done in results)

    def log(self, offset: int) -> bytes:
        done = call(self.ssh(self.slice.nodes[0], self.host_command("log", str(offset)), worker="0"), QUICK)
        return done.stdout.encode(errors="surrogateescape") if done.returncode == 0 else b""

    def tails(self) -> str:
        results = self._each(lambda node: self.ssh(node, self.host_command("tail")), QUICK)
        return "\n".join(done.stdout.rstrip() for _, done in results)

    # Commands, as the dry run prints them.

    def gcloud(self, *parts: str) -> list[str]:
        where = [f"--zone={self.slice.zone}", *([f"--project={self.slice.project}"] if self.slice.project else [])]
        return ["gcloud", "compute", "tpus", *parts, *where]

    def create_command(self) -> list[str]:
        it = self.slice
        shape = [f"--node-id={it.name}"]
        if it.slices > 1:
            shape = [f"--node-prefix={it.name}", f"--node-count={it.slices}"]
        machine = [f"--accelerator-type={it.type}", f"--runtime-version={it.runtime}"]
        capacity = [it.capacity] if it.capacity else []
        return self.gcloud("queued-resources", "create", it.name, *shape, *machine, *capacity)

    def describe_command(self) -> list[str]:
        return self.gcloud("queued-resources", "describe", self.slice.name, "--format=value(state.state)")

    def delete_command(self) -> list[str]:
        return self.gcloud("queued-resources", "delete", self.slice.name, "--force", "--quiet")

    def ssh(self, node: str, command: str, worker: str = "all") -> list[str]:
        return self.gcloud("tpu-vm", "ssh", node, f"--worker={worker}", *SSH, f"--command={command}")

    def host_command(self, verb: str, *arguments: str) -> str:
        script = f"{self.slice.folder}/host.sh"
        command = " ".join(["bash", script, verb, *map(shlex.quote, arguments)])
        if verb == "status":
            return f'if [ -f {script} ]; then {command}; else echo "@r1jax $(hostname) none 0 "; fi'
        if verb in ("save", "stop"):
            return f"if [ -f {script} ]; then {command}; fi"
        return command

    def install_commands(self) -> list[tuple[Callable[[str], list[str]], float]]:
        """Steps of the installation: a command for each slice, and its time limit in seconds."""
        folder, files = self.slice.folder, [str(self.folder / ARCHIVE), str(self.folder / ENVIRONMENT)]
        unpack = f"cd {folder} && chmod 600 env && rm -rf configs *.whl && tar -xzf {ARCHIVE} && bash host.sh install"
        return [
            (lambda node: self.ssh(node, f"mkdir -p {folder} && chmod 700 {folder}"), QUICK),
            (lambda node: self.gcloud("tpu-vm", "scp", *files, f"{node}:{folder}/", "--worker=all"), LONG),
            (lambda node: self.ssh(node, f"{unpack} {shlex.quote(self.slice.bucket)}"), LONG),
        ]

    def _describe(self, kind: str, name: str) -> dict[str, Any] | View:
        done = call(self.gcloud(kind, "describe", name, "--format=json"), QUICK)
        if done.returncode == 0:
            try:
                found = json.loads(done.stdout)
            except ValueError:
                found = None
            return found if isinstance(found, dict) else View(UNKNOWN, f"gcloud answered {done.stdout[:200]!r}")
        return View(GONE) if re.search(r"\bNOT_FOUND\b|was not found", done.stderr) else View(UNKNOWN, words(done))

    def _each(
        self, command: Callable[[str], list[str]], seconds: float
    ) -> list[tuple[str, subprocess.CompletedProcess[str]]]:
        """Runs the command of each slice, all at once."""
        nodes = self.slice.nodes
        with ThreadPoolExecutor(len(nodes)) as pool:
            results = pool.map(lambda node: call(command(node), seconds), nodes)
            try:
                return list(zip(nodes, results, strict=True))
            except BaseException:  # Ctrl-C: the pool would wait for its threads
                for process in list(LIVE):
                    _kill(process)
                raise

    def _must(self, command: Callable[[str], list[str]], seconds: float) -> None:
        for node, done in self._each(command, seconds):
            if done.returncode:
                raise CloudError(f"on {node}: {words(done)}")


def call(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Runs a command with a time limit, in a group of its own that is ended with it; exit code 124 for a late one."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen(command, **pipes, start_new_session=True)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: {error.strerror}")
    LIVE.add(process)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.communicate()
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {seconds:.0f} s")
    except BaseException:
        _kill(process)
        raise
    finally:
        LIVE.discard(process)
    texts = (stream.decode(errors="surrogateescape") for stream in (out, err))  # as they are: offsets count bytes
    return subprocess.CompletedProcess(command, process.returncode, *texts)


def words(done: subprocess.CompletedProcess[str]) -> str:
    """The last lines of what a failed command said, without gcloud's notes on its own work."""
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    kept = [line for line in lines if "ERROR" in line or line.startswith("error")] or lines
    return " ".join(kept[-4:])[-1000:] or f"exit code {done.returncode}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _reason(state: dict[str, Any]) -> str:
    """The error of a request that failed, wherever the cloud has put it."""
    error = (state.get("failedData") or {}).get("error") or {}
    return str(error.get("message") or json.dumps(state))
