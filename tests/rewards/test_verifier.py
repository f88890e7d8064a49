r"""The verifier's processes: hostile answers cost a deadline and no more, the dead are replaced, none outlives us.

No test asserts a speed; `hang_guard` only turns an endless wait into a failure.
"""

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from r1jax.rewards.verifier import VerifierPool

ROOT = Path(__file__).resolve().parents[2]
RIGHT = ("7", r"\boxed{7}")
WRONG = ("7", r"\boxed{8}")
ENDLESS = r"\boxed{9^{9^{9^{9^9}}}}"


@pytest.fixture(autouse=True)
def hang_guard():
    """Kills the test run, with all stacks shown, if a test takes minutes."""
    faulthandler.dump_traceback_later(300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def make_pool():
    pools = []

    def make(*args, **kwargs):
        pools.append(VerifierPool(*args, **kwargs))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def is_alive(pid):
    """Whether a process runs; one that has ended but was not collected (by an idle init) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_order_is_kept_over_many_chunks_and_workers(make_pool):
    pool = make_pool(3)
    pairs = [(str(i // 4), rf"\boxed{{{i // 4 + i % 2}}}") for i in range(150)]
    assert pool.verify(pairs) == [1.0 - i % 2 for i in range(150)]
    assert len(pool.process_ids()) == 3
    assert pool.verify([]) == []


def test_workers_are_kept_between_calls_and_after_warm_up(make_pool):
    pool = make_pool(2)
    pool.warm_up()
    pids = pool.process_ids()
    assert len(pids) == 2
    assert pool.verify([RIGHT]) == [1.0] and pool.verify([WRONG] * 20) == [0.0] * 20
    assert pool.process_ids() == pids


def test_unreadable_golds_have_no_reward(make_pool, caplog):
    pool = make_pool(1)
    golds = ["", " ", None, "unparseable", "unparseable"]
    assert pool.verify([(gold, RIGHT[1]) for gold in golds]) == [None] * 5
    assert pool.verify([("unparseable", RIGHT[1]), RIGHT]) == [None, 1.0]
    assert len([record for record in caplog.records if "unparseable" in record.message]) == 1


def test_a_hostile_gold_has_no_reward_and_costs_one_deadline(make_pool):
    pool = make_pool(1, deadline_seconds=2.0)
    gold = "$" + "(" * 5000 + "$"
    assert pool.verify([(gold, RIGHT[1])] * 200 + [RIGHT]) == [None] * 200 + [1.0]


@pytest.mark.parametrize("seconds", [3.0, 1000.0])
def test_a_worker_that_gets_no_processor_changes_no_verdict(make_pool, seconds):
    """A stop of three deadlines is waited for; one without end costs the worker, and nothing else."""
    pool = make_pool(1, deadline_seconds=1.0)
    assert pool.verify([RIGHT]) == [1.0]
    (pid,) = pool.process_ids()
    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(seconds, os.kill, (pid, signal.SIGCONT))
    timer.start()
    try:
        assert pool.verify([RIGHT, WRONG]) == [1.0, 0.0]
    finally:
        timer.cancel()
    assert (pool.process_ids() == [pid]) is (seconds < 4)


def test_a_worker_killed_from_outside_is_replaced(make_pool):
    pool = make_pool(2)
    assert pool.verify([RIGHT] * 16) == [1.0] * 16
    before = pool.process_ids()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert pool.verify([RIGHT, WRONG] * 8) == [1.0, 0.0] * 8
    assert not set(before) & set(pool.process_ids())


def test_a_worker_killed_at_work_loses_no_answer(make_pool):
    pool = make_pool(1, deadline_seconds=3.0)
    pool.verify([RIGHT])
    (pid,) = pool.process_ids()
    killer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
    killer.start()
    assert pool.verify([("7", ENDLESS), RIGHT, WRONG]) == [0.0, 1.0, 0.0]
    killer.join()


def test_an_answer_that_kills_every_worker_is_given_up(make_pool):
    """A hunter kills whatever works on the endless answer, long before its deadline."""
    pool = make_pool(1, deadline_seconds=120.0)
    pool.verify([RIGHT])
    done = threading.Event()

    def hunt():
        while not done.wait(1.0):
            for pid in pool.process_ids():
                if busy_seconds(pid) > 3:
                    os.kill(pid, signal.SIGKILL)

    hunter = threading.Thread(target=hunt)
    hunter.start()
    assert pool.verify([("7", ENDLESS), RIGHT]) == [0.0, 1.0]
    done.set()
    hunter.join()


def busy_seconds(pid):
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_memory_is_limited_by_the_kernel(make_pool):
    pool = make_pool(1, memory_bytes=500 << 20)
    pool.verify([RIGHT])
    limits = Path(f"/proc/{pool.process_ids()[0]}/limits").read_text()
    assert str(500 << 20) in limits.partition("Max address space")[2].splitlines()[0]


def test_a_worker_that_has_grown_retires_without_loss(make_pool):
    """With a limit so low that the libraries alone take more than half, each reply is a worker's last."""
    pool = make_pool(1, memory_bytes=100 << 20)
    pool.verify([RIGHT])
    before = pool.process_ids()
    assert pool.verify([RIGHT, WRONG] * 2) == [1.0, 0.0] * 2
    assert pool.process_ids() != before


def test_threads_take_turns(make_pool):
    pool = make_pool(2)
    results = {}

    def ask(value):
        results[value] = pool.verify([(str(value), rf"\boxed{{{value}}}"), (str(value), r"\boxed{99}")] * 20)

    threads = [threading.Thread(target=ask, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {value: [1.0, 0.0] * 20 for value in range(4)}


def test_an_interrupted_call_leaves_no_answers_to_the_next(make_pool, monkeypatch):
    pool = make_pool(1)
    pool.verify([RIGHT])
    wait = pool._wait
    monkeypatch.setattr(pool, "_wait", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pool.verify([WRONG] * 8)
    monkeypatch.setattr(pool, "_wait", wait)
    assert pool.verify([RIGHT] * 8) == [1.0] * 8


def test_workers_that_cannot_start_are_an_error(make_pool):
    pool = make_pool(1, memory_bytes=1 << 20)
    with pytest.raises(RuntimeError, match="while loading math-verify"):
        pool.verify([RIGHT])


def test_workers_hold_no_jax_and_start_beside_it(make_pool):
    """Workers are programs of their own: no fork of a process in which JAX runs, and none of its libraries inside."""
    import jax.numpy as jnp

    assert float(jnp.ones(3).sum()) == 3.0
    pool = make_pool(1)
    assert pool.verify([RIGHT]) == [1.0]
    for pid in pool.process_ids():
        assert "jaxlib" not in Path(f"/proc/{pid}/maps").read_text()


PARENT = """
import sys, threading, time
from r1jax.rewards.verifier import VerifierPool
assert "jax" not in sys.modules
pool = VerifierPool(2, deadline_seconds=2.0)
pool.warm_up()
pool.verify([("7", r"\\boxed{7}")] * 16)
print(*pool.process_ids(), flush=True)
if sys.argv[1] == "busy":
    pool.verify([("7", sys.argv[2])] * 2)
time.sleep(600)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_workers_end_when_their_parent_is_killed(state):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, state, ENDLESS], stdout=subprocess.PIPE, cwd=ROOT)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(map(is_alive, pids))
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not any(map(is_alive, pids)))
