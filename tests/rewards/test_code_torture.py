r"""Hostile programs in the sandbox, each beside an honest twin that does the same task.

Every program (`hostile_programs.txt`) is given the same task: print twice the number on stdin, or define `twice`. The
hostile one tries to get out, to break the machine, or to earn the reward without doing the task; it must earn nothing,
end within its limit, and leave no process. The twin, which uses the same means for the task, must earn everything. All
run in one batch, several at a time, so that they also meet each other.
"""

import os
import secrets
import socket
import threading
import time
from pathlib import Path

import pytest

from r1jax.rewards import code
from r1jax.rewards.code import code_reward
from r1jax.sandbox.box import find_fault, require_isolation
from tests.rewards.boxes import needs_box
from tests.rewards.hostile_programs import ASSERTS, STDIN

SECONDS = 20.0  # for one test; honest programs take a tenth of a second, the rest is for loaded machines
NUMBERS = (21, 4, 1000)
EXPECTED = [str(2 * n) for n in NUMBERS]
TOKEN = secrets.token_hex(8)


def tasks():
    """(name, is hostile, program, verification_info) of all."""
    stdin = {
        "language": "python",
        "test_cases": [{"input": f"{n}\n", "output": want} for n, want in zip(NUMBERS, EXPECTED, strict=True)],
    }
    texts = [f"assert twice({n}) == {want}" for n, want in zip(NUMBERS, EXPECTED, strict=True)]
    texts[-1] += "\nassert math.isclose(twice(5), 10) and isinstance(twice(6), int)"
    asserts = {"language": "python", "test_cases": [{"type": "assert", "code": text} for text in texts]}
    for table, info in ((STDIN, stdin), (ASSERTS, asserts)):
        for name, pair in table.items():
            for program, hostile in zip(pair, (True, False), strict=True):
                # The first test is enough to see a hostile program fail, and it costs its time limit.
                yield name, hostile, program, info | {"test_cases": info["test_cases"][: 1 if hostile else None]}


def processes():
    """(parent, command) by process id of all that run on this machine."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if fields[0] not in "ZX":
                found[int(folder.name)] = (int(fields[1]), command)
    return found


def boxes_of(pid):
    """Commands of the bwrap processes below a process."""
    every = processes()
    below = {pid}
    for _ in range(20):
        below |= {child for child, (parent, _) in every.items() if parent in below}
    return [every[child][1] for child in below if child != pid and child in every and "bwrap" in every[child][1]]


@pytest.fixture
def bait(tmp_path):
    """A secret file, and listeners on the network and by an abstract name; what reached them."""
    (tmp_path / "secret").write_text("42\n")
    reached = []
    listeners = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
    listeners[1].bind(f"\0r1jax-{TOKEN}")
    listeners[1].listen()

    def serve(listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            reached.append(listener.getsockname())
            connection.send(b"42\n")
            connection.close()

    threads = [threading.Thread(target=serve, args=(listener,), daemon=True) for listener in listeners]
    for thread in threads:
        thread.start()
    words = {
        "SECRET": str(tmp_path / "secret"),
        "PORT": str(listeners[0].getsockname()[1]),
        "PARENT": str(os.getpid()),
        "TOKEN": TOKEN,
    }
    yield words, reached
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join()


def run_all(names, words, seconds):
    chosen = [task for task in tasks() if names is None or task[0] in names]
    texts = []
    for _, _, program, _ in chosen:
        for word, value in words.items():
            program = program.replace(word, value)
        texts.append(f"```python\n{program}\n```")
    begin = time.monotonic()
    rewards = code_reward(texts, [info for *_, info in chosen], num_parallel=4, seconds_per_test=seconds)
    assert time.monotonic() - begin < len(chosen) * (seconds + 5)
    return {
        (name, "hostile" if hostile else "honest"): value
        for (name, hostile, *_), value in zip(chosen, rewards, strict=True)
    }


def check(names, bait, seconds):
    require_isolation()
    assert find_fault() is None
    code._verdicts.clear()
    words, reached = bait
    rewards = run_all(names, words, seconds)
    wanted = {key: float(key[1] == "honest") for key in rewards}
    assert rewards == wanted, {key: value for key, value in rewards.items() if value != wanted[key]}
    assert reached == [] and Path(words["SECRET"]).read_text() == "42\n"
    end = time.monotonic() + 30
    while left := boxes_of(os.getpid()):
        assert time.monotonic() < end, left
        time.sleep(0.05)
    assert not [command for _, command in processes().values() if f"r1jax-{TOKEN}" in command]


# Those that run until a time limit ends them take that long; they are the slow half.
UNTIL_THE_LIMIT = {
    "fork bomb in threads",
    "disk fill in every folder",
    "endless loop",
    "endless sleep",
    "big integers",
    "catastrophic pattern",
    "signals ignored",
    "endless answer",
    "endless reply",
    "memory of many",
}


def test_there_are_enough_of_them():
    names = [*STDIN, *ASSERTS]
    assert len(names) == len(set(names)) >= 50 and set(names) > UNTIL_THE_LIMIT


@needs_box
def test_hostile_programs_earn_nothing_and_their_twins_everything(bait):
    check({*STDIN, *ASSERTS} - UNTIL_THE_LIMIT, bait, SECONDS)


@needs_box
@pytest.mark.slow
def test_so_do_those_that_never_end(bait):
    check(UNTIL_THE_LIMIT, bait, 6.0)
