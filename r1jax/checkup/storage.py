"""The storage of a workdir: renames, locks, what other hosts see, and a checkpoint that comes back bit for bit.

Everything is in a folder of its own in the workdir (`doctor-probe`), which is removed. In a bucket there are no
renames; there the checkpoint, which needs none, is the check.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from r1jax.checkup.findings import Finding
from r1jax.core import distributed
from r1jax.core.atomic_file import replace_file
from r1jax.core.buckets import staging
from r1jax.core.checkpoint import Checkpoints
from r1jax.core.locks import hold_lock
from r1jax.core.sharding import current_mesh

PROBE = "doctor-probe"
SEEN_SECONDS = 20.0  # for a file to be seen by the other hosts
CURES = {
    "rename": "a run replaces its files by renames: use a file system that has them (a local disk, NFS, Filestore, "
    "Lustre), or name the bucket itself, --workdir=gs://BUCKET/RUN, which is written without renames",
    "lock": "a run locks its workdir so that no second one writes there: mount the file system with locks (NFS without "
    "nolock), or name another --workdir",
    "sharing": "all hosts of a run need one storage: name a --workdir that all of them mount, or gs://BUCKET/RUN",
    "checkpoint": "a checkpoint that does not come back as it was saved is lost: check the file system and its free "
    "space, or name another --workdir",
    "write": "make the folder writable, or name another --workdir",
}


def check_storage(workdir: pathlib.Path, megabytes: int) -> Finding:
    """Renames, locks, sharing between hosts, and saving and restoring an array of so many megabytes, with the rates.

    Every process of a run calls this, under a mesh over all devices or none.
    """
    folder, place = workdir / PROBE, staging.locate(workdir)
    with _probe(folder):
        faults = [""]
        if distributed.is_writer() and not staging.is_staged(workdir):
            faults = [_try_files(folder)]
        fault = distributed.text_from_first(faults[0])
        if not fault and not staging.is_staged(workdir):
            fault = _look_for_token(folder)
            fault = next(filter(None, distributed.texts_from_all(fault)), "")
        if fault:
            kind, _, words = fault.partition("|")
            return Finding("storage", "wrong", f"{place}: {words}", CURES[kind])
        try:
            saved, restored, same = _save_and_restore(folder, megabytes)
        except Exception as error:
            words = f"a checkpoint could not be saved and restored: {_spell(error)}"
            return Finding("storage", "wrong", f"{place}: {words}", CURES["checkpoint"])
    figures: dict[str, Any] = {"megabytes": megabytes, "save_seconds": saved, "restore_seconds": restored}
    if not staging.is_staged(workdir):
        figures["free_bytes"] = shutil.disk_usage(workdir).free
    if not same:
        text = f"{place}: a checkpoint came back with other bits"
        return Finding("storage", "wrong", text, CURES["checkpoint"], figures)
    text = f"{place}: a checkpoint of {megabytes} MB is saved at {megabytes / saved:,.0f} MB/s and restored at "
    return Finding("storage", "right", f"{text}{megabytes / restored:,.0f} MB/s, bit for bit", figures=figures)


@contextlib.contextmanager
def _probe(folder: pathlib.Path) -> Iterator[None]:
    """Context with the folder, made and removed by the first process."""
    if distributed.is_writer():
        _remove(folder)
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
    distributed.wait("the doctor's folder")
    try:
        yield
    finally:
        distributed.wait("the doctor's folder is done")
        if distributed.is_writer():
            _remove(folder)


def _remove(folder: pathlib.Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if staging.is_staged(folder):
        staging.remove(staging.locate(folder))


def _try_files(folder: pathlib.Path) -> str:
    """Writes, renames and locks; "" or the fault as `kind|words`. Leaves a file for the other hosts."""
    file = folder / "token"
    try:
        file.write_text("first")
    except OSError as error:
        return f"write|nothing can be written: {_spell(error)}"
    try:
        replace_file(file, "second")
        os.rename(folder / "token", folder / "renamed")
        os.rename(folder / "renamed", folder / "token")
    except OSError as error:
        return f"rename|a file cannot be renamed onto another: {_spell(error)}"
    if (found := file.read_text()) != "second":
        return f"rename|a renamed file holds {found!r} in place of what was written"
    try:
        with hold_lock(folder / ".lock", str(folder)):
            pass
    except Exception as error:
        return f"lock|a file cannot be locked: {_spell(error)}"
    return ""


def _look_for_token(folder: pathlib.Path) -> str:
    """ "" once this process sees the first one's file, or the fault."""
    end = time.monotonic() + (SEEN_SECONDS if jax.process_count() > 1 else 0)
    while True:
        with contextlib.suppress(OSError):
            if (folder / "token").read_text() == "second":
                return ""
        if time.monotonic() >= end:
            return f"sharing|process {jax.process_index() + 1} does not see what the first wrote there"
        time.sleep(0.2)


def _save_and_restore(folder: pathlib.Path, megabytes: int) -> tuple[float, float, bool]:
    """Seconds of saving and of restoring, and whether every bit came back."""
    rows = 8 * jax.device_count()
    columns = max(1, megabytes * 10**6 // 4 // rows)
    random = np.random.default_rng(0).integers(0, 2**31, (rows, columns), np.int32)  # does not compress
    mesh = current_mesh()
    sharding: jax.sharding.Sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if mesh is not None:
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    state = {"array": jax.make_array_from_callback(random.shape, sharding, lambda index: random[index])}
    shapes = {"array": jax.ShapeDtypeStruct(random.shape, random.dtype, sharding=sharding)}
    checkpoints = Checkpoints(folder)
    begin = time.perf_counter()
    checkpoints.save(1, state, {})
    checkpoints.close()
    saved = time.perf_counter() - begin
    checkpoints = Checkpoints(folder)
    begin = time.perf_counter()
    restored, _ = checkpoints.restore(1, shapes)
    jax.block_until_ready(restored)
    seconds = time.perf_counter() - begin
    checkpoints.close()
    shards = zip(restored["array"].addressable_shards, state["array"].addressable_shards, strict=True)
    same = all(np.array_equal(np.asarray(a.data), np.asarray(b.data)) for a, b in shards)
    return saved, seconds, not distributed.any_process(not same)


def _spell(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__
