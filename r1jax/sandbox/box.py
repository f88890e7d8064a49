"""Sandbox for programs written by a model: no network, no files except a scratch folder, hard limits, killed as a tree.

Bubblewrap (0.8 or later, `apt-get install bubblewrap`) builds the sandbox from kernel namespaces. Inside are the
programs and libraries of the system and the Python that runs us, read-only (`mounts.py`), the files of the run, and a
temporary scratch folder in memory; there is no /proc, no /etc, no home, no network except an unconnected loopback, no
capabilities, no further user namespaces, and no process of ours to see, signal or trace. A filter denies system calls
that such programs do not need (`syscalls.py`). Programs of a trainer that runs as root run as `nobody`, where the
kernel and `setpriv` allow it, so that they cannot read what only root may.

Limits: the kernel enforces wall time, address space, file size, and by control groups, where they can be made, the
number of tasks, memory and CPU time of the whole tree (`cgroup.py`); a watcher checks resident memory, CPU time and the
number of processes of the whole tree every few milliseconds (`tree.py`); output bytes are counted while they are read.
A process that exceeds a limit is killed with all its descendants: the sandbox's first process dies with its parent, and
a process namespace dies with its first process.

If the sandbox cannot be created, `require_isolation` raises an error unless the config accepts the risk in words
(`RISK_ACCEPTED`); the program then runs with our privileges, under the limits only.

Left out: faults of the kernel itself (a virtual machine helps), and side channels such as a run's duration.
"""

import contextlib
import dataclasses
import functools
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from r1jax.core.errors import UserError
from r1jax.sandbox.cgroup import TaskGroup, task_group
from r1jax.sandbox.limits import Limits, Outcome, Status
from r1jax.sandbox.mounts import find_python, mount_arguments
from r1jax.sandbox.syscalls import filter_of_machine
from r1jax.sandbox.tree import Tree, descendants

RISK_ACCEPTED = "none, and I accept that programs written by a model run with my rights"
SCRATCH, FILES = "/scratch", "/files"
_WATCH_SECONDS = 0.02
_CHUNK = 1 << 16
_NOBODY = "65534"
_GROUP_SLACK = 16 << 20  # bytes for the sandbox itself and the kernel's tables
_LIMITS = (
    'ulimit -c 0; ulimit -S -t "$1"; ulimit -H -t $(($1 + 1)); ulimit -v "$2"; ulimit -f "$3"; ulimit -n 64; '
    'test "$4" = 0 || ulimit -u "$4" 2>/dev/null || ulimit -p "$4"; '
    'test -z "$5" || echo \'"exit-code"\' >"$5"; shift 5; exec "$@"'
)


@dataclass(frozen=True)
class Box:
    """One run: a command, its stdin, and files by name, placed read-only into `FILES`. `compiles`: with the compiler's
    headers. `sockets`: sockets of this machine by their path inside, which the command may connect to.
    """

    command: Sequence[str]
    stdin: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    limits: Limits = Limits()
    compiles: bool = False
    sockets: Mapping[str, str] = field(default_factory=dict)


def require_isolation(isolation: str = "bubblewrap") -> None:
    """Raises UserError unless the sandbox can be created, or `isolation` equals `RISK_ACCEPTED`."""
    if isolation == RISK_ACCEPTED:
        return
    if isolation != "bubblewrap":
        raise UserError(f'isolation must be "bubblewrap" or exactly "{RISK_ACCEPTED}", got {isolation!r}')
    if (fault := find_fault()) is not None:
        raise UserError(
            f"programs written by a model run in bubblewrap only, but {fault}; install version 0.8 or later "
            f'(apt-get install bubblewrap), or accept the risk with the reward argument isolation = "{RISK_ACCEPTED}"'
        )


@functools.cache
def find_fault() -> str | None:
    """Reason why the sandbox cannot be created on this machine, or None. Tested once, with a real run."""
    if shutil.which("bwrap") is None:
        return "there is no bwrap command"
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        return "this kernel does not list a process's children (CONFIG_PROC_CHILDREN)"
    outcome = run(Box(("/bin/sh", "-c", "echo works")))
    if outcome.stdout != b"works\n":
        return f"it does not work here ({outcome.stderr.decode(errors='replace').strip() or outcome.status})"
    return None


def run(box: Box, isolation: str = "bubblewrap") -> Outcome:
    """Runs a command in the sandbox and waits for its end; the calling thread must live until then."""
    begin = time.monotonic()
    with _start_errors(begin) as failed, contextlib.ExitStack() as stack:
        stdin = stack.enter_context(_memory_file(box.stdin))
        started = _start(box, isolation, stack, stdin, subprocess.PIPE, subprocess.PIPE)
        return _watch_to_the_end((started,), box.limits, begin)
    return failed[0]


def run_pair(checker: Box, program: Box, isolation: str = "bubblewrap") -> Outcome:
    """Runs two commands with each one's stdout connected to the other's stdin; returns the checker's outcome.

    The checker's limits apply to both; stderr of the program is discarded.
    """
    begin = time.monotonic()
    with _start_errors(begin) as failed, contextlib.ExitStack() as stack:
        ends = [
            stack.enter_context(os.fdopen(end, "rb" if i % 2 == 0 else "wb", 0))
            for i, end in enumerate((*os.pipe(), *os.pipe()))
        ]
        asked, asks, answered, answers = ends
        started = (
            _start(checker, isolation, stack, answered, asks, subprocess.PIPE),
            _start(program, isolation, stack, asked, answers, subprocess.DEVNULL),
        )
        for end in ends:  # close our copies; otherwise neither side would see the other's end of file
            end.close()
        return _watch_to_the_end(started, checker.limits, begin)
    return failed[0]


@contextlib.contextmanager
def converse(box: Box, isolation: str = "bubblewrap") -> Iterator[subprocess.Popen[bytes]]:
    """Context with a process in the sandbox and pipes to its stdin and stdout; it is killed as a tree at the end.

    Of the limits those of the kernel hold; its wall time is the caller's to watch.
    """
    with contextlib.ExitStack() as stack:
        yield _start(box, isolation, stack, subprocess.PIPE, subprocess.PIPE, subprocess.DEVNULL).process


def python_command(*arguments: str) -> tuple[str, ...]:
    """Command of the base Python that runs us, outside the virtual environment and ignoring environment settings."""
    return (find_python(), "-I", "-B", *arguments)


@contextlib.contextmanager
def _start_errors(begin: float) -> Iterator[list[Outcome]]:
    """Turns errors of the operating system (no processes, files or space left) into an outcome, `unstarted`."""
    failed: list[Outcome] = []
    try:
        yield failed
    except OSError as error:
        failed.append(Outcome("unstarted", None, b"", str(error).encode(), time.monotonic() - begin))


class _Started(NamedTuple):
    process: subprocess.Popen[bytes]
    group: TaskGroup | None
    boxed: bool
    report: IO[bytes]  # has an exit code once the command was started

    def never_ran(self) -> bool:
        """Whether the sandbox ended without having started its command."""
        if self.process.poll() is None:
            return False
        self.report.seek(0)
        return b'"exit-code"' not in self.report.read()

    def kill(self) -> None:
        """Kills the process and its descendants. In a sandbox one kill is enough; otherwise those that can be found are
        killed: below the process, and later in its control group.
        """
        left = [] if self.boxed else descendants(self.process.pid, 10_000)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


def _start(
    box: Box, isolation: str, stack: contextlib.ExitStack, stdin: IO[bytes] | int, stdout: IO[bytes] | int, stderr: int
) -> _Started:
    """Starts a sandboxed process, which is killed when the exit stack closes."""
    memory = box.limits.memory_bytes + box.limits.scratch_bytes + _GROUP_SLACK
    group = stack.enter_context(task_group(_most_tasks(box.limits), memory))
    report = stack.enter_context(_memory_file(b""))
    if isolation == RISK_ACCEPTED:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="r1jax-run-", ignore_cleanup_errors=True))
        command, fds = _bare_command(box, scratch, report), [report.fileno()]
    else:
        scratch = None
        held = {name: stack.enter_context(_memory_file(content)) for name, content in box.files.items()}
        if box.stdin:  # a copy, for programs that open /dev/stdin: a link to /proc/self/fd/0, and there is no /proc
            held["/proc/self/fd/0"] = stack.enter_context(_memory_file(box.stdin))
        command = _boxed_command(box, held, report)
        fds = [report.fileno(), *(file.fileno() for file in held.values())]
        if code := filter_of_machine():
            file = stack.enter_context(_memory_file(code))
            command[1:1] = ["--seccomp", str(file.fileno())]
            fds.append(file.fileno())
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
    started = _Started(process, group, isolation != RISK_ACCEPTED, report)
    stack.callback(started.kill)
    return started


@functools.cache
def _can_become_nobody() -> bool:
    """Whether programs can run as `nobody` in a sandbox that root builds without a user namespace. Tested once."""
    if os.geteuid() != 0 or not os.path.exists("/usr/bin/setpriv"):
        return False
    with _memory_file(b"") as report:
        command = _command(Box(("/bin/sh", "-c", "echo works")), {}, report, as_nobody=True)
        try:
            done = subprocess.run(command, capture_output=True, timeout=30, pass_fds=[report.fileno()])
        except (OSError, subprocess.TimeoutExpired):
            return False
    return done.stdout == b"works\n"


def _boxed_command(box: Box, files: Mapping[str, IO[bytes]], report: IO[bytes]) -> list[str]:
    return _command(box, files, report, as_nobody=_can_become_nobody())


def _command(box: Box, files: Mapping[str, IO[bytes]], report: IO[bytes], *, as_nobody: bool) -> list[str]:
    command = ["bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    command += ["--cap-drop", "ALL"]
    if as_nobody:  # root's files are not those of the program's user; setpriv gives up these capabilities too
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
    else:
        command += ["--unshare-user", "--disable-userns", "--uid", _NOBODY, "--gid", _NOBODY]
    command += ["--die-with-parent", "--new-session", "--clearenv", "--hostname", "box"]
    command += ["--json-status-fd", str(report.fileno())]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": SCRATCH, "TMPDIR": SCRATCH, "LANG": "C.UTF-8"}
    for name, value in environment.items():
        command += ["--setenv", name, value]
    command += mount_arguments(compiles=box.compiles)
    command += ["--dev", "/dev", "--ro-bind", "/dev/null", "/dev/zero"]  # a map of /dev/zero is shared memory
    for name, file in files.items():
        command += ["--perms", "0755", "--ro-bind-data", str(file.fileno()), os.path.join(FILES, name)]
    for place, path in box.sockets.items():
        command += ["--bind", path, place]
    mode = "0777" if as_nobody else "0700"
    command += ["--perms", mode, "--size", str(box.limits.scratch_bytes), "--tmpfs", SCRATCH]
    # Last, because the mounts above create folders there; the remaining writable folder has a size limit.
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", SCRATCH]
    if as_nobody:
        command += ["/usr/bin/setpriv", "--reuid", _NOBODY, "--regid", _NOBODY, "--clear-groups"]
        command += ["--inh-caps=-all", "--bounding-set=-all", "--"]
    # The resource limit counts all processes of the user, and nobody's are those of all sandboxes.
    return [*command, *_limited(box, 0 if as_nobody else _most_tasks(box.limits))]


def _bare_command(box: Box, scratch: str, report: IO[bytes]) -> list[str]:
    """The command without a sandbox. Its files are in the scratch folder, and its paths are rewritten to them. It
    reports its start as bwrap does.
    """
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
    started = f"/proc/self/fd/{report.fileno()}"
    return _limited(dataclasses.replace(box, command=command), _most_tasks(box.limits), started)


def _limited(box: Box, tasks: int, started: str = "") -> list[str]:
    """The command behind a shell that sets the kernel's limits, and writes to the file `started` before it starts."""
    limits = box.limits
    values = (
        max(1, round(limits.cpu_seconds + 0.5)),
        2 * limits.memory_bytes // 1024,  # address space, which a program never uses in full
        limits.scratch_bytes // 512,
        tasks,
        started,
    )
    return ["/bin/sh", "-c", _LIMITS, "sh", *map(str, values), *box.command]


def _most_tasks(limits: Limits) -> int:
    """The kernel's task limit, which also counts threads and the sandbox's own processes."""
    return 4 * limits.processes


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[IO[bytes]]:
    """An anonymous file in memory, positioned at its beginning."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        file.seek(0)
        yield file


def _watch_to_the_end(started: Sequence[_Started], limits: Limits, begin: float) -> Outcome:
    """Watches until the first process has ended or any process has exceeded a limit, then kills all."""
    processes = [each.process for each in started]
    pipes = {name: getattr(processes[0], name) for name in ("stdout", "stderr")}
    output = {name: bytearray() for name in pipes}
    trees = [Tree(each.process.pid, each.group, SCRATCH if each.boxed else "") for each in started]
    broken = _watch(trees, processes[0], {name: pipe for name, pipe in pipes.items() if pipe}, output, limits, begin)
    if broken is None and any(each.never_ran() for each in started):
        broken = "unstarted"
    for each in started:
        each.kill()
    if broken is None and any(each.group and each.group.was_full() for each in started):
        broken = "processes"
    if broken in (None, "processes") and any(each.group and each.group.was_out_of_memory() for each in started):
        broken = "memory"
    code = None if broken else processes[0].returncode
    if code in (128 + signal.SIGXCPU, -signal.SIGXCPU):  # bwrap and shells report a signal as 128 + its number
        broken, code = "time", None
    status: Status = broken or ("ok" if code == 0 else "failed")
    return Outcome(status, code, bytes(output["stdout"]), bytes(output["stderr"]), time.monotonic() - begin)


def _watch(
    trees: Sequence[Tree],
    first: subprocess.Popen[bytes],
    pipes: Mapping[str, IO[bytes]],
    output: Mapping[str, bytearray],
    limits: Limits,
    begin: float,
) -> Status | None:
    """Reads the first process's pipes into `output` until it ends (None) or a limit is exceeded (its status)."""
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
                for tree in trees:
                    if broken := tree.look(limits):
                        return broken
                next_look = now + _WATCH_SECONDS
            ended = first.poll() is not None
            # Without pipes this only sleeps.
            for key, _ in selector.select(0 if ended else min(_WATCH_SECONDS, deadline - now)):
                data = pipes[key.data].read(_CHUNK)
                if data:
                    output[key.data].extend(data)
                elif data is not None:
                    selector.unregister(key.fileobj)
            if ended:
                # Its remaining output is in the pipes; a descendant that keeps them open is not waited for.
                for name, pipe in pipes.items():
                    output[name].extend(pipe.read(limits.output_bytes) or b"")
            if sum(map(len, output.values())) > limits.output_bytes:
                return "output"
            if ended:
                return None
