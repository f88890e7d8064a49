import json
import multiprocessing
import time
from pathlib import Path

import pytest

from r1jax.core import locks
from r1jax.core.errors import UserError
from r1jax.core.locks import hold_lock


def hold(file: Path, taken: "multiprocessing.synchronize.Event") -> None:
    with hold_lock(file, "the run"):
        taken.set()
        time.sleep(60)


def start_holder(file: Path) -> multiprocessing.Process:
    context = multiprocessing.get_context("spawn")
    taken = context.Event()
    process = context.Process(target=hold, args=(file, taken))
    process.start()
    assert taken.wait(60)
    return process


def test_a_second_process_is_refused_until_the_first_dies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "run" / ".lock"
    holder = start_holder(file)
    try:
        with (
            pytest.raises(UserError, match=rf"^the run is in use by process {holder.pid} on "),
            hold_lock(file, "the run"),
        ):
            pass
    finally:
        holder.kill()
        holder.join()
    with hold_lock(file, "the run"):
        assert f"taking over the lock of process {holder.pid} on " in caplog.text
    assert file.read_bytes() == b""


def test_a_fresh_lease_of_another_host_is_respected_and_an_old_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / ".lock"
    lease = {"host": "elsewhere", "process": 7, "time": time.time()}
    file.write_text(json.dumps(lease))
    with pytest.raises(UserError, match="in use by process 7 on elsewhere"), hold_lock(file, "the run"):
        pass
    file.write_text(json.dumps({**lease, "time": time.time() - locks.LEASE_SECONDS - 1}))
    with hold_lock(file, "the run"):
        assert "the lock of process 7 on elsewhere, which no longer runs" in caplog.text


def test_a_lease_is_renewed_and_a_torn_one_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "RENEW_SECONDS", 0.01)
    file = tmp_path / ".lock"
    file.write_text('{"host": "else')
    with hold_lock(file, "the run"):
        first = json.loads(file.read_text())
        file.write_text("")
        end = time.monotonic() + 30
        while not file.read_text() and time.monotonic() < end:
            time.sleep(0.01)
        assert json.loads(file.read_text())["process"] == first["process"]
