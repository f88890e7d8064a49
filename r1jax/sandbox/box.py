"""A box for programs that a model wrote: no network, no files but a scratch folder, hard limits, killed as a tree.

Bubblewrap (0.8 or later, `apt-get install bubblewrap`) makes the box from kernel namespaces. Inside there is a
read-only system (/usr and the Python that runs us, but not our virtual environment), the files of the run, a scratch
folder in memory that is gone afterwards, and nothing else: no /proc, no /etc, no home, no network but an unconnected
loopback, no capabilities, no further user namespaces, no process of ours to see, signal or trace.

Limits: wall time, CPU time, address space, file size and number of tasks by the kernel (`task_group`), resident memory
and number of processes over the whole tree by a watch every few milliseconds, bytes of output while they are read.
Whatever breaks one is killed with all its descendants: the box's first process dies with its parent, and a process
namespace dies with its first process.

Where the box cannot be made, `require_isolation` refuses, unless the config says in words that the risk is taken
(`RISK_ACCEPTED`); the program then runs with our rights, under the limits only.

Left out: faults of the kernel itself (a virtual machine helps), and side channels such as the time that a run takes.
"""

import contextlib
import dataclasses
import functools
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, NamedTuple

from r1jax.core.errors import UserError
from r1jax.sandbox.cgroup import TaskGroup, task_group

RISK_ACCEPTED = "none, and I accept that programs written by a model run with my rights"
SCRATCH, FILES = "/scratch", "/files"
_WATCH_SECONDS = 0.02
_CHUNK = 1 << 16
# Found in the box under their own names if the system has them.
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin")
_LIMITS = (
    'ulimit -c 0; ulimit -S -t "$1"; ulimit -H -t $(($1 + 1)); ulimit -v "$2"; ulimit -f "$3"; ulimit -n 256; '
    'ulimit -u "$4" 2>/dev/null || ulimit -p "$4"; shift 4; exec "$@"'
)

Status = Literal["ok", "failed", "compile", "time", "memory", "processes", "output"]


@dataclass(frozen=True)
class Limits:
    """What one run may use: seconds of wall time and of CPU time, bytes, and processes (threads not counted)."""

    seconds: float = 5.0
    cpu_seconds: float = 5.0
    memory_bytes: int = 512 << 20
    scratch_bytes: int = 64 << 20
    output_bytes: int = 4 << 20
    processes: int = 32


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `ok` is exit code 0, `failed` any other or a signal, else the limit that it broke."""

    status: Status
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    seconds: float


@dataclass(frozen=True)
class Box:
    """One run to be made: a command in the box, its input, and files by name, laid into `FILES` read-only.

    `folder`, if given, is a folder of ours that the command sees as `SCRATCH` and may write into (to compile).
    """

    command: Sequence[str]
    stdin: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    limits: Limits = Limits()
    folder: Path | None = None


def require_isolation(isolation: str = "bubblewrap") -> None:
    """Raises UserError unless the box can be made, or `isolation` is `RISK_ACCEPTED`, word for word."""
    if isolation == RISK_ACCEPTED:
        return
    if isolation != "bubblewrap":
        raise UserError(f'isolation must be "bubblewrap" or, word for word, "{RISK_ACCEPTED}", got {isolation!r}')
    if (fault := find_fault()) is not None:
        raise UserError(
            f"programs written by a model are run in bubblewrap only, but {fault}; install version 0.8 or later "
            f'(apt-get install bubblewrap), or take the risk by the reward\'s argument isolation = "{RISK_ACCEPTED}"'
        )


@functools.cache
def find_fault() -> str | None:
    """What keeps the box from being made on this machine, or None. Tried once, with a real run."""
    if shutil.which("bwrap") is None:
        return "there is no bwrap command"
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        return "this kernel does not list a process's children (CONFIG_PROC_CHILDREN)"
    outcome = run(Box(("/bin/sh", "-c", "echo works")))
    if outcome.stdout != b"works\n":
        return f"it does not work here ({outcome.stderr.decode(errors='replace').strip() or outcome.status})"
    return None


def run(box: Box, isolation: str = "bubblewrap") -> Outcome:
    """Runs a command in the box and waits for its end; the caller's thread must live until then."""
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        stdin = stack.enter_context(_memory_file(box.stdin))
        started = _start(box, isolation, stack, stdin, subprocess.PIPE, subprocess.PIPE)
        return _watch_to_the_end((started,), box.limits, begin)


def run_pair(checker: Box, program: Box, isolation: str = "bubblewrap") -> Outcome:
    """Runs two commands that talk, each one's stdout being the other's stdin; the outcome is the checker's.

    The checker's limits hold for both; what the program writes on stderr is lost.
    """
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        ends = [
            stack.enter_context(os.fdopen(end, "rb" if i % 2 == 0 else "wb", 0))
            for i, end in enumerate((*os.pipe(), *os.pipe()))
        ]
        asked, asks, answered, answers = ends
        started = (
            _start(checker, isolation, stack, answered, asks, subprocess.PIPE),
            _start(program, isolation, stack, asked, answers, subprocess.DEVNULL),
        )
        for end in ends:  # ours; else neither would ever see the other's end
            end.close()
        return _watch_to_the_end(started, checker.limits, begin)


def python_command(*arguments: str) -> tuple[str, ...]:
    """A command of the Python that runs us, as it was before the virtual environment, deaf to settings."""
    return (_python(), "-I", "-B", *arguments)


class _Started(NamedTuple):
    process: subprocess.Popen[bytes]
    group: TaskGroup | None
    boxed: bool

    def kill(self) -> None:
        """Kills what is left. In a box one blow is enough; without one, those that can be found are."""
        left = [] if self.boxed else _descendants(self.process.pid, 10_000)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


def _start(
    box: Box, isolation: str, stack: contextlib.ExitStack, stdin: IO[bytes], stdout: IO[bytes] | int, stderr: int
) -> _Started:
    """Starts a box; it is dead when the stack is left."""
    group = stack.enter_context(task_group(_most_tasks(box.limits)))
    if isolation == RISK_ACCEPTED:
        scratch = str(box.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="r1jax-run-")))
        command, fds = _bare_command(box, scratch), []
    else:
        scratch = None
        held = {name: stack.enter_context(_memory_file(content)) for name, content in box.files.items()}
        command, fds = _boxed_command(box, held), [file.fileno() for file in held.values()]
    process = subprocess.Popen(
        group.enter(command) if group else command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=fds,
        start_new_session=True,
        cwd=scratch,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
    )
    stack.enter_context(process)
    started = _Started(process, group, boxed=isolation != RISK_ACCEPTED)
    stack.callback(started.kill)
    return started


@functools.cache
def _python() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _boxed_command(box: Box, files: Mapping[str, IO[bytes]]) -> list[str]:
    # --unshare-user and --cap-drop are needed by name: bwrap started by root keeps root and its capabilities otherwise.
    command = ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534"]
    command += ["--cap-drop", "ALL", "--die-with-parent", "--new-session", "--clearenv", "--hostname", "box"]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": SCRATCH, "TMPDIR": SCRATCH, "LANG": "C.UTF-8"}
    for name, value in environment.items():
        command += ["--setenv", name, value]
    for path in (*_SYSTEM, sys.base_prefix):
        if path.startswith("/usr/") or not os.path.exists(path):
            continue
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        else:
            command += ["--ro-bind", path, path]
    command += ["--ro-bind-try", "/etc/alternatives", "/etc/alternatives", "--dev", "/dev"]
    for name, file in files.items():
        command += ["--perms", "0755", "--ro-bind-data", str(file.fileno()), f"{FILES}/{name}"]
    if box.folder is None:
        command += ["--perms", "0700", "--size", str(box.limits.scratch_bytes), "--tmpfs", SCRATCH]
    else:
        command += ["--bind", str(box.folder), SCRATCH]
    # Only now, for the lines above make folders there; what is left writable has a size.
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", SCRATCH]
    return [*command, *_limited(box)]


def _bare_command(box: Box, scratch: str) -> list[str]:
    """The command without a box. Its files lie in a folder of the scratch folder, and its paths are changed to them."""
    folder = Path(scratch, "files")
    for name, content in box.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755)
    places = {FILES: str(folder), SCRATCH: scratch}
    command = []
    for word in box.command:
        for inside, outside in places.items():
            word = word.replace(f"{inside}/", f"{outside}/")
        command.append(word)
    return _limited(dataclasses.replace(box, command=command))


def _limited(box: Box) -> list[str]:
    """The command behind a shell that sets the kernel's limits."""
    limits = box.limits
    values = (
        max(1, round(limits.cpu_seconds + 0.5)),
        2 * limits.memory_bytes // 1024,  # address space, of which a program never uses all
        limits.scratch_bytes // 512,
        _most_tasks(limits),
    )
    return ["/bin/sh", "-c", _LIMITS, "sh", *map(str, values), *box.command]


def _most_tasks(limits: Limits) -> int:
    """The kernel's limit, in which threads count, and the box's own processes."""
    return 4 * limits.processes


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[IO[bytes]]:
    """A file that has no name anywhere, read from its beginning."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        file.seek(0)
        yield file


def _watch_to_the_end(started: Sequence[_Started], limits: Limits, begin: float) -> Outcome:
    """Watches until the first process has ended or any has broken a limit, and kills them all."""
    processes = [each.process for each in started]
    pipes = {name: getattr(processes[0], name) for name in ("stdout", "stderr")}
    output = {name: bytearray() for name in pipes}
    broken = _watch(processes, {name: pipe for name, pipe in pipes.items() if pipe}, output, limits, begin)
    for each in started:
        each.kill()
    if broken is None and any(each.group and each.group.was_full() for each in started):
        broken = "processes"
    code = None if broken else processes[0].returncode
    if code in (128 + signal.SIGXCPU, -signal.SIGXCPU):  # bwrap and shells report a signal as 128 + its number
        broken, code = "time", None
    status: Status = broken or ("ok" if code == 0 else "failed")
    return Outcome(status, code, bytes(output["stdout"]), bytes(output["stderr"]), time.monotonic() - begin)


def _watch(
    processes: Sequence[subprocess.Popen[bytes]],
    pipes: Mapping[str, IO[bytes]],
    output: Mapping[str, bytearray],
    limits: Limits,
    begin: float,
) -> Status | None:
    """Reads the first process's pipes into `output` until it has ended (None) or a limit is broken (which)."""
    deadline, next_look = begin + limits.seconds, 0.0
    with selectors.DefaultSelector() as selector:
        for name, pipe in pipes.items():
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, name)
        while True:
            now = time.monotonic()
            if now >= deadline:
                return "time"
            if now >= next_look:
                for process in processes:
                    if broken := _look(process.pid, limits):
                        return broken
                next_look = now + _WATCH_SECONDS
            ended = processes[0].poll() is not None
            # Without pipes to read this is a sleep.
            for key, _ in selector.select(0 if ended else min(_WATCH_SECONDS, deadline - now)):
                data = pipes[key.data].read(_CHUNK)
                if data:
                    output[key.data].extend(data)
                elif data is not None:
                    selector.unregister(key.fileobj)
            if ended:
                # The rest of what it wrote is in the pipes; a descendant that holds them open is not waited for.
                for name, pipe in pipes.items():
                    output[name].extend(pipe.read(limits.output_bytes) or b"")
            if sum(map(len, output.values())) > limits.output_bytes:
                return "output"
            if ended:
                return None


def _look(pid: int, limits: Limits) -> Status | None:
    """The limit over the whole tree that is broken at this moment, if one is."""
    tree = _descendants(pid, 4 * limits.processes)
    if len(tree) > limits.processes + 3:  # bwrap, its first process, the shell's successor
        return "processes"
    resident = 0
    for member in tree:
        with contextlib.suppress(OSError, IndexError):
            resident += int(Path(f"/proc/{member}/statm").read_text().split()[1])
    return "memory" if resident * os.sysconf("SC_PAGE_SIZE") > limits.memory_bytes else None


def _descendants(pid: int, most: int) -> list[int]:
    """The process ids below `pid`, a little over `most` of them at the most."""
    found: list[int] = []
    waiting = [pid]
    while waiting and len(found) <= most:
        parent = waiting.pop()
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                children = [int(child) for child in Path(f"/proc/{parent}/task/{task}/children").read_text().split()]
                found += children
                waiting += children
        except OSError:
            continue
    return found
