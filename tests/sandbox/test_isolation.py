"""The sandbox: memory that no process's size shows, CPU time of a tree, what is mounted, daemons, system faults."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from r1jax.core.errors import UserError
from r1jax.sandbox import box, cgroup, execution, mounts
from r1jax.sandbox.box import FILES, RISK_ACCEPTED, Box, Limits, python_command, run
from r1jax.sandbox.execution import Program, Test
from tests.rewards.boxes import needs_box, run_python
from tests.sandbox.hostile_memory import LIMITS, MOST_MIB, PROGRAMS, read_held

ROOT = Path(__file__).parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"


def without_groups(monkeypatch):
    """A machine on which no control group can be made."""
    monkeypatch.setattr(cgroup, "_find_parents", dict)


@needs_box
@pytest.mark.parametrize("groups", ["groups", "no groups"])
def test_hidden_memory_is_bounded(groups, monkeypatch):
    if groups == "no groups":
        without_groups(monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        held = list(pool.map(lambda source: read_held(run_python(source, **LIMITS)), PROGRAMS.values()))
    too_much = {name: mib for name, mib in zip(PROGRAMS, held, strict=True) if mib > MOST_MIB}
    assert len(held) >= 12 and too_much == {}


@needs_box
def test_a_group_counts_memory_in_files(monkeypatch):
    """Also without a filter of system calls, as on machines that it is not made for."""
    if "memory" not in cgroup._find_parents():
        pytest.skip("no control group that counts memory can be made on this machine")
    monkeypatch.setattr(box, "filter_of_machine", bytes)
    outcome = run_python(PROGRAMS["file in memory"], **LIMITS)
    assert outcome.status == "memory" and 16 < read_held(outcome) <= MOST_MIB


BURN = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        end = time.process_time() + 60
        while time.process_time() < end: pass
time.sleep(60)
"""
BURN_ONE_AFTER_THE_OTHER = """
import os, time
while True:
    if os.fork() == 0:
        while time.process_time() < 0.3: pass
        os._exit(0)
    os.wait()
"""


@needs_box
@pytest.mark.parametrize("source", [BURN, BURN_ONE_AFTER_THE_OTHER], ids=["side by side", "one after the other"])
@pytest.mark.parametrize("groups", ["groups", "no groups"])
def test_cpu_time_is_that_of_all_processes(source, groups, monkeypatch):
    if groups == "no groups":
        without_groups(monkeypatch)
    outcome = run_python(source, cpu_seconds=1.0, seconds=60.0)
    assert outcome.status == "time" and outcome.seconds < 30


SEEN = """
import ctypes, os
def read(path):
    try: return open(path).read() or "empty"
    except OSError as error: return type(error).__name__
libc = ctypes.CDLL(None)
print([name for name in ("/usr/src", "/usr/local", "/usr/sbin", "/usr/include", "/usr/games") if os.path.exists(name)])
print(os.listdir(REPOSITORY), os.listdir(HERE), read(SECRET), read(HERE + "/secret"))
print(libc.prctl(39, 0, 0, 0, 0), libc.prctl(21, 0, 0, 0, 0), set(os.getgroups()) <= {65534})
print([number for number in range(41) if libc.prctl(24, number, 0, 0, 0)] if os.getuid() == 65534 else "")
"""


@needs_box
def test_only_what_an_interpreter_needs_is_mounted(tmp_path, monkeypatch):
    """Even if the repository, the current folder and a private file lie in a folder that is."""
    repository = os.path.realpath(ROOT)
    here, shown = tmp_path / "here", tmp_path / "shown"
    tmp_path.chmod(0o755)
    for folder in (here, shown):
        folder.mkdir(mode=0o755)
        (folder / "secret").write_text("42")
        (folder / "secret").chmod(0o600)
    above = os.path.dirname(repository)
    if tmp_path.is_relative_to(above):  # a clone in /tmp: pytest's own folder there is closed to nobody
        above = repository
    monkeypatch.setattr(mounts, "_PROGRAMS", (*mounts._PROGRAMS, above, str(tmp_path)))
    monkeypatch.chdir(here)
    source = SEEN.replace("REPOSITORY", repr(repository)).replace("HERE", repr(str(here)))
    outcome = run_python(source.replace("SECRET", repr(str(shown / "secret"))))
    lines = outcome.stdout.decode().splitlines()
    private = "PermissionError" if box._can_become_nobody() else "42"
    assert lines[:3] == ["[]", f"[] [] {private} FileNotFoundError", "1 2 True"], outcome
    assert os.geteuid() != 0 or box._can_become_nobody()


@needs_box
def test_the_repository_is_not_mounted():
    paths = [str(ROOT), str(ROOT / "r1jax"), os.getcwd(), "/etc/passwd", "/home", "/tmp", "/var", "/work"]
    outcome = run_python(f"import os; print([path for path in {paths!r} if os.path.exists(path)])")
    assert outcome.stdout == b"[]\n"


DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(3): os.close(number)
        open("MARK", "w").write(str(os.getpid()))
        time.sleep(300)
    os._exit(0)
while not os.path.exists("MARK"): time.sleep(0.01)
print(42)
"""


@pytest.mark.parametrize("isolation", [pytest.param("bubblewrap", marks=needs_box), RISK_ACCEPTED])
def test_a_daemon_left_behind_neither_ends_the_run_nor_lives_on(isolation, tmp_path):
    mark = "/scratch/mark" if isolation == "bubblewrap" else str(tmp_path / "mark")
    files = {"main.py": DAEMON.replace("MARK", mark).encode()}
    outcome = run(Box(python_command(f"{FILES}/main.py"), files=files, limits=Limits(seconds=30)), isolation)
    assert (outcome.status, outcome.stdout) == ("ok", b"42\n") and outcome.seconds < 10
    if isolation == RISK_ACCEPTED:
        daemon = int((tmp_path / "mark").read_text())
        if cgroup._find_parents():
            end = time.monotonic() + 10
            while Path(f"/proc/{daemon}/cmdline").exists() and Path(f"/proc/{daemon}/cmdline").read_bytes():
                assert time.monotonic() < end
                time.sleep(0.01)
        else:
            os.kill(daemon, signal.SIGKILL)


@pytest.mark.parametrize("isolation", [pytest.param("bubblewrap", marks=needs_box), RISK_ACCEPTED])
@pytest.mark.parametrize("where", ["process", "file", "folder", "group", "limits"])
def test_a_fault_of_the_system_is_no_wrong_answer(where, isolation, monkeypatch):
    def fail(*args, **named):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    box._can_become_nobody()
    provider = execution.LocalProvider(isolation)
    places = {"process": (subprocess, "Popen"), "file": (tempfile, "TemporaryFile"), "group": (cgroup, "_make")}
    if where == "group" and not cgroup._find_parents():
        pytest.skip("no control group can be made on this machine")
    if where == "folder" and isolation != RISK_ACCEPTED:
        pytest.skip("no folder is made for a sandbox")
    if where == "limits":  # the shell cannot join its group
        monkeypatch.setattr(cgroup, "_JOIN", "exit 125")
        if not cgroup._find_parents():
            pytest.skip("no control group can be made on this machine")
    else:
        monkeypatch.setattr(*(places | {"folder": (tempfile, "TemporaryDirectory")})[where], fail)
    monkeypatch.setattr(execution, "_PAUSE_SECONDS", 0.0)
    assert provider.run(Program("print(1)"), Test("")) is None


@needs_box
def test_a_group_that_cannot_be_removed_costs_nothing_but_a_warning(monkeypatch, caplog):
    if not cgroup._find_parents():
        pytest.skip("no control group can be made on this machine")
    left = []

    def fail(folder):
        left.append(folder)
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(cgroup, "_KILL_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", fail)
        assert run_python("print(1)").stdout == b"1\n"
    for folder in set(left):
        end = time.monotonic() + 10
        while folder.exists() and time.monotonic() < end:
            try:
                os.rmdir(folder)
            except OSError:
                time.sleep(0.01)
    assert left and "could not be removed" in caplog.text


def test_compiled_programs_are_kept_up_to_a_size():
    kept = execution._Binaries(1000)
    outcome = box.Outcome("ok", 0, b"", b"", 0.0)
    programs = [Program(f"{number:0100}", "cpp") for number in range(20)]
    for program in programs:
        kept.put(program, (outcome, b"x" * 200))
        kept.put(program, (outcome, b"x" * 200))
        kept.get(programs[0])
        assert kept._bytes == 300 * len(kept._kept) <= 1000
    assert list(kept._kept) == [programs[18], programs[19], programs[0]]
    kept.put(Program("", "cpp"), (outcome, b"x" * 2000))
    assert kept.get(Program("", "cpp")) is None and kept._bytes == 0


def test_only_known_languages_are_compiled():
    with pytest.raises(UserError, match="runs python and cpp, got 'rust'"):
        execution.LocalProvider(RISK_ACCEPTED).run(Program("", "rust"), Test(""))


@needs_box
@pytest.mark.slow
def test_all_hostile_programs_as_an_ordinary_user():
    """The hostile programs, their honest twins and those that hide memory, run by a user without any right."""
    script = [SYSTEM_PYTHON, "-m", "tests.sandbox.ordinary_user"]
    if os.geteuid() == 0:
        if not (shutil.which("setpriv") and os.path.exists(SYSTEM_PYTHON)):
            pytest.skip("neither setpriv nor a Python of the system")
        script = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", "--inh-caps=-all", *script]
    else:
        script[0] = sys.executable
    done = subprocess.run(
        script, cwd=ROOT, capture_output=True, text=True, timeout=1200, env={"PATH": os.environ["PATH"]}
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "wrong: []" in done.stdout
