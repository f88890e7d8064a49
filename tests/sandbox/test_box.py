"""The sandbox: what a program sees, each limit, refusal where isolation is missing. The hostile: test_code_torture."""

import os
import threading

import pytest

from r1jax.core.errors import UserError
from r1jax.sandbox import box as sandbox
from r1jax.sandbox import execution
from r1jax.sandbox.box import FILES, RISK_ACCEPTED, Box, Limits, Outcome, python_command, require_isolation, run
from r1jax.sandbox.cgroup import _find_parent
from r1jax.sandbox.execution import Program, Test
from tests.rewards.boxes import needs_box, run_python


@needs_box
def test_a_program_reads_stdin_and_its_output_comes_back():
    outcome = run_python("import sys; print(int(input()) + 1); print('e', file=sys.stderr)", "41\n")
    assert (outcome.status, outcome.exit_code, outcome.stdout, outcome.stderr) == ("ok", 0, b"42\n", b"e\n")
    outcome = run_python("import sys; print(1); sys.exit(3)")
    assert (outcome.status, outcome.exit_code, outcome.stdout) == ("failed", 3, b"1\n")
    assert run_python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)").status == "failed"


SEEN = """
import os, socket
print(sorted(set(os.listdir("/")) - {"lib", "lib32", "lib64", "bin", "sbin", "usr", "etc", "root", "home", "opt"}))
print(os.listdir("/files"), os.listdir("/scratch"), os.getcwd(), os.getuid(), os.getgid(), os.getppid() < 5)
print([name for _, name in socket.if_nameindex()], sorted(os.environ), socket.gethostname())
for path in ("/", "/dev", "/dev/shm", "/files", "/usr", "/files/main.py", "/tmp"):
    try:
        open(path if path.endswith(".py") else path + "/x", "w")
        print("wrote", path)
    except OSError:
        pass
open("/scratch/x", "w").write("x")
"""


@needs_box
def test_what_a_program_sees():
    lines = run_python(SEEN).stdout.decode().splitlines()
    assert lines == [
        "['dev', 'files', 'scratch']",
        "['main.py'] [] /scratch 65534 65534 True",
        "['lo'] ['HOME', 'LANG', 'LC_CTYPE', 'PATH', 'PWD', 'TMPDIR'] box",
    ] or lines == [
        "['dev', 'files', 'scratch']",
        "['main.py'] [] /scratch 65534 65534 True",
        "['lo'] ['HOME', 'LANG', 'PATH', 'PWD', 'TMPDIR'] box",
    ]


@needs_box
@pytest.mark.parametrize(
    ("source", "limits", "status"),
    [
        ("while True: pass", {"seconds": 0.5}, "time"),
        ("import time; time.sleep(60)", {"seconds": 0.5}, "time"),
        ("while True: pass", {"cpu_seconds": 0.4}, "time"),
        ("x = []\nwhile True: x.append(b'x' * 10**6)", {"memory_bytes": 64 << 20}, "memory"),
        ("x = bytearray(10**9)", {"memory_bytes": 64 << 20}, "failed"),
        (
            "import os, time\nfor _ in range(30): os.fork() or (time.sleep(9), os._exit(0))\ntime.sleep(9)",
            {"processes": 8},
            "processes",
        ),
        ("while True: print('x' * 1000)", {"output_bytes": 10_000}, "output"),
        ("import os\nos.write(2, b'x' * 60_000)", {"output_bytes": 10_000}, "output"),
        ("open('/scratch/x', 'wb').write(b'x' * 10**6)", {"scratch_bytes": 10**5}, "failed"),
        ("for i in range(99): open(f'/scratch/{i}', 'wb').write(b'x' * 5000)", {"scratch_bytes": 10**5}, "failed"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_limits(source, limits, status):
    assert run_python(source, **({"seconds": 30.0} | limits)).status == status


COUNTING = """
import threading, time
started = 0
try:
    while started < 1000:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        started += 1
except RuntimeError:
    pass
import os
os.write(1, b"%d" % started)
os._exit(0)
"""


@needs_box
@pytest.mark.parametrize("isolation", ["bubblewrap", RISK_ACCEPTED])
def test_the_kernel_refuses_more_tasks_than_the_limit_allows(isolation):
    """Also to root, whom a resource limit does not hold; and the group is gone afterwards."""
    if (parent := _find_parent()) is None:
        pytest.skip("no control group can be made on this machine (neither root nor a delegated group)")
    files = {"main.py": COUNTING.encode()}
    command = python_command(f"{FILES}/main.py")
    outcome = run(Box(command, b"", files, Limits(processes=8, memory_bytes=2 << 30, seconds=30.0)), isolation)
    assert outcome.status == "processes" and 16 <= int(outcome.stdout) < 32
    assert not list(parent.glob(f"r1jax-{os.getpid()}-*"))


@needs_box
def test_many_at_once_do_not_share_anything():
    outputs = {}

    def work(number):
        source = f"import os; open('x', 'w').write('{number}'); print(open('x').read(), len(os.listdir('.')))"
        outputs[number] = run_python(source, seconds=60.0).stdout

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {number: f"{number} 1\n".encode() for number in range(6)}


def test_without_isolation_it_refuses_unless_the_risk_is_accepted_in_words(monkeypatch):
    monkeypatch.setattr(sandbox, "find_fault", lambda: "there is no bwrap command")
    with pytest.raises(
        UserError, match="bubblewrap only, but there is no bwrap command; install version 0.8 .*accept the risk"
    ) as caught:
        require_isolation()
    assert "\n" not in str(caught.value)
    for almost in ("none", "off", "", RISK_ACCEPTED.upper()):
        with pytest.raises(UserError, match="isolation must be"):
            require_isolation(almost)
    require_isolation(RISK_ACCEPTED)


def test_a_missing_command_is_found_missing(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert sandbox.find_fault.__wrapped__() == "there is no bwrap command"


def test_with_the_risk_accepted_programs_run_under_the_limits_alone():
    source = b"import os; print(input(), os.path.basename(__file__)); open('x', 'w'); print(os.listdir('.'))"
    box = Box(python_command(f"{FILES}/main.py"), b"hello\n", {"main.py": source}, Limits(seconds=30))
    outcome = run(box, RISK_ACCEPTED)
    assert outcome.status == "ok" and outcome.stdout.startswith(b"hello main.py\n[")
    endless = Box(python_command("-c", "import os, time; os.fork(); time.sleep(60)"), limits=Limits(seconds=0.5))
    assert run(endless, RISK_ACCEPTED).status == "time"


@needs_box
def test_a_sandbox_that_does_not_start_is_no_failure_of_the_program(monkeypatch):
    command = sandbox._boxed_command
    broken = lambda *args: [*command(*args)[:1], "--ro-bind", "/nowhere", "/x", *command(*args)[1:]]
    monkeypatch.setattr(sandbox, "_boxed_command", broken)
    assert run_python("print(1)").status == "unstarted"
    monkeypatch.setattr(execution, "_PAUSE_SECONDS", 0.0)
    provider = execution.LocalProvider.__new__(execution.LocalProvider)
    provider.isolation = "bubblewrap"
    assert provider.run(Program("print(1)"), Test("")) is None
    monkeypatch.undo()
    assert run_python("import sys; sys.exit('bwrap: no')").status == "failed"
    assert provider.run(Program("print(1)"), Test("")).stdout == b"1\n"


@needs_box
def test_a_sandbox_tries_twice(monkeypatch):
    outcomes = [Outcome("unstarted", None, b"", b"", 0.0), Outcome("ok", 0, b"1", b"", 0.0)]
    monkeypatch.setattr(execution, "_PAUSE_SECONDS", 0.0)
    provider = execution.LocalProvider()
    monkeypatch.setattr(provider, "_run", lambda *_: outcomes.pop(0))
    assert provider.run(Program("print(1)"), Test("")).status == "ok"


@needs_box
def test_dev_stdin_can_be_opened():
    source = (
        "import sys\nprint(open('/dev/stdin').read() == open('/proc/self/fd/0').read() == sys.stdin.read() == 'a\\nb')"
    )
    assert run_python(source, "a\nb").stdout == b"True\n"
    assert run_python("import os; print(sorted(set(os.listdir('/proc/self/fd'))))", "a").stdout == b"['0']\n"
