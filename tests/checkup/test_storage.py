"""A folder that does what a run needs, and ones that do not."""

import errno
import os
import pathlib
from typing import Any

import pytest

from r1jax.checkup import storage
from r1jax.core import atomic_file, distributed
from r1jax.core.buckets import staging
from tests.core.buckets.test_staging import MISSING, NEEDED, Bucket
from tests.core.buckets.test_staging import bucket as bucket


def test_a_good_folder_is_left_as_it_was(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine").write_text("x")
    found = storage.check_storage(tmp_path, 1)
    assert found.verdict == "right", found.text
    assert found.figures["save_seconds"] > 0 and found.figures["free_bytes"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_refused_renames_are_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Any, target: Any, **_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(source))

    monkeypatch.setattr(atomic_file.os, "replace", refuse)
    monkeypatch.setattr(os, "rename", refuse)
    found = storage.check_storage(tmp_path, 1)
    assert found.verdict == "wrong" and "cannot be renamed onto another: Operation not permitted" in found.text
    assert "gs://" in found.cure and not (tmp_path / storage.PROBE).exists()


def test_a_checkpoint_with_other_bits_is_found(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = storage.Checkpoints.restore

    def damage(self: Any, step: int, shapes: Any) -> Any:
        state, metadata = keep(self, step, shapes)
        return {"array": state["array"].at[0, 0].add(1)}, metadata

    monkeypatch.setattr(storage.Checkpoints, "restore", damage)
    found = storage.check_storage(tmp_path, 1)
    assert found.verdict == "wrong" and "other bits" in found.text


def test_a_folder_that_another_host_does_not_see(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as one that does not write, with a folder that nobody else fills."""
    monkeypatch.setattr(distributed, "is_writer", lambda: False)
    found = storage.check_storage(tmp_path, 1)
    assert found.verdict == "wrong" and "does not see what the first wrote" in found.text and "all hosts" in found.cure


def test_a_folder_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("x")
    found = storage.check_storage(tmp_path / "file", 1)
    assert found.verdict == "wrong" and "nothing can be written: Not a directory" in found.text


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"needs the packages {' and '.join(NEEDED)} (extra gcs, and the emulator)")
def test_a_bucket_needs_no_renames_and_is_left_as_it_was(bucket: Bucket) -> None:
    local = staging.stage("gs://runs/doctor/run")
    (local / "doctor.json").write_text("{}")
    staging.push(local)
    found = storage.check_storage(local, 1)
    assert found.verdict == "right", found.text
    assert found.text.startswith("gs://runs/doctor/run: a checkpoint of 1 MB") and "free_bytes" not in found.figures
    assert bucket.names("doctor/run") == ["doctor/run/doctor.json"]
