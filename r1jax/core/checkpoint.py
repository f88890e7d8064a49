"""Checkpoints of a run by orbax's interface v1: arrays (each process writes its shards), with metadata (step, data
position) as JSON. Those of interface v0, which r1jax wrote before 0.2, are read too.

A checkpoint exists once it is complete: orbax renames it into place, so a run killed while saving resumes from the one
before. Checksums are then written beside its files (checksums.py) and verified before a run resumes: a damaged
checkpoint is moved to `checkpoints.damaged/` and the one before is used.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import tensorstore

from r1jax.core import distributed, tensorstore_leaks
from r1jax.core.buckets import staging
from r1jax.core.buckets.staging import Place
from r1jax.core.checksums import describe_files, find_damage, has_checksums, write_checksums
from r1jax.core.errors import UserError
from r1jax.core.processes.failures import describe_process

log = logging.getLogger(__name__)

FOLDER, DAMAGED = "checkpoints", "checkpoints.damaged"
STATE, FACTS = "state", "facts"  # the parts of a checkpoint: arrays, and metadata as JSON
TREE_CACHE = 32 << 20  # bytes of a checkpoint's database that a reader keeps
SAVED_STEP = "saved_step"  # in the metadata: the step, by which a renamed folder is known
SETTLE_SECONDS = 10.0  # for processes to see the same checkpoints on a network file system


class Checkpoints:
    """The checkpoints `workdir/checkpoints/STEP`; keeps the newest `keep`."""

    def __init__(self, workdir: pathlib.Path, *, keep: int = 2):
        tensorstore_leaks.avoid()
        # On CPU the host copy may be a view of buffers that the next update overwrites: save synchronously there.
        self._asynchronous = jax.default_backend() != "cpu"
        place = staging.locate(workdir)
        self._workdir: Place = place if staging.is_address(place) else workdir.resolve()
        if (home := self._workdir / FOLDER).is_file():
            raise UserError(
                f"{home} must be the folder of the run's checkpoints, but it is a file: move it away (--workdir)"
            )
        newest = ocp.training.preservation_policies.LatestN(keep)
        self._manager = ocp.training.Checkpointer(
            self._workdir / FOLDER, context=_make_context(), preservation_policy=newest
        )
        self._under_way: Any = None  # orbax's response to a save; its thread ends once the result is taken

    @property
    def latest(self) -> int | None:
        """The newest complete step that this process sees, or None."""
        newest = self._manager.latest
        return None if newest is None else newest.step

    def find_whole(self) -> int | None:
        """The newest undamaged step, the same in every process; None if none was saved.

        The processes must see the same checkpoints; each verifies its share of the files. Damaged checkpoints are moved
        to `checkpoints.damaged/` and logged. Raises UserError if checkpoints exist and all are damaged, and in every
        process if one does not see what another sees.
        """
        while (step := self._agree_on_latest()) is not None:
            if not (damage := self._find_damage(step)):
                return step
            place = self._set_aside(step)
            log.warning("the checkpoint of step %d is damaged (%s); moved to %s", step, damage, place)
        aside = self._workdir / DAMAGED
        count = len([*aside.iterdir()]) if aside.is_dir() else 0
        if distributed.any_process(count > 0):
            raise UserError(
                f"no whole checkpoint is left in {self._workdir / FOLDER}: {count} damaged ones are in {aside}; to "
                "start from scratch name another --workdir or delete that folder"
            )
        return None

    def _agree_on_latest(self) -> int | None:
        def look() -> str:
            self._manager.reload()
            return "no checkpoint" if self.latest is None else f"step {self.latest} as the newest checkpoint"

        self._agree(look)
        return self.latest

    def _agree(self, look: Callable[[], str]) -> str:
        """The words of `look`, once they are the same in every process. The listing of a network file system may be old
        for some seconds; raises UserError if the processes differ for longer.
        """
        end = time.monotonic() + SETTLE_SECONDS
        while len(set(seen := distributed.texts_from_all(look()))) > 1:
            if distributed.any_process(time.monotonic() > end):
                other = next(index for index, words in enumerate(seen) if words != seen[0])
                there, here = seen[other] or "it whole", seen[0] or "it whole"
                raise UserError(
                    f"{describe_process(other)} sees {there}, but {describe_process(0)} sees {here} in "
                    f"{self._workdir}: --workdir must be one folder that all processes of the run share"
                )
            time.sleep(1)
        return seen[0]

    def _find_damage(self, step: int) -> str:
        """Description of the damage that any process found; "" if none did."""
        folder = self.folder(step)
        if flaw := self._agree(lambda: (why := _find_flaw(folder)) and f"step {step} in part ({why})"):
            return flaw
        damage = find_damage(folder, index=jax.process_index(), count=jax.process_count())
        anywhere = distributed.any_process(bool(damage))
        return damage or ("found by another process" if anywhere else "")

    def _set_aside(self, step: int) -> Place:
        place = self._workdir / DAMAGED / str(step)
        for number in range(1, 1000):
            if not place.exists():
                break
            place = self._workdir / DAMAGED / f"{step}.{number}"
        if distributed.is_writer():
            if staging.is_address(place):
                staging.move_remote(self.folder(step), place)
            else:
                place.parent.mkdir(exist_ok=True)
                os.rename(self.folder(step), place)
        distributed.wait(f"set aside {step}")
        self._manager.reload()
        return place

    def folder(self, step: int) -> Place:
        """Folder of a step."""
        return self._workdir / FOLDER / str(step)

    def save(self, step: int, state: Any, metadata: dict[str, Any], *, kept: bool = False) -> None:
        """Starts saving; arrays may be donated once this returns, or with `kept` once `finish` does."""
        self.finish()
        parts = {STATE: state, FACTS: metadata | {SAVED_STEP: step}}
        if self._asynchronous or kept:
            self._under_way = self._manager.save_checkpointables_async(step, parts, force=True)
        else:
            self._manager.save_checkpointables(step, parts, force=True)
            self.finish()

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """State with the shardings of `abstract_state`, and metadata. Raises UserError if it does not fit this run's
        model.
        """
        try:
            self._check_dtypes(step, abstract_state)
            restored = self._manager.load_checkpointables(step, {STATE: abstract_state, FACTS: None})
        except (ValueError, KeyError, FileNotFoundError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"the checkpoint of step {step} in {self._manager.directory} does not fit this run ({reason[:200]}); "
                "resume with the same model and optimizer or start in another --workdir"
            ) from None
        metadata = {key: value for key, value in restored[FACTS].items() if key != SAVED_STEP}
        return restored[STATE], metadata

    def _check_dtypes(self, step: int, abstract_state: Any) -> None:
        """Raises ValueError if an array was saved in another dtype, which restoring would silently round."""
        saved = _read_shapes(self.folder(step))
        name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
        dtypes = {name(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_state):
            if (dtype := dtypes.get(name(path), leaf.dtype)) != leaf.dtype:
                raise ValueError(f"{name(path)} was saved as {dtype}, this run has {leaf.dtype}")

    def close(self) -> None:
        """Waits for a save under way; nothing can be saved afterwards."""
        self.finish()
        self._manager.close()

    def finish(self) -> None:
        """Waits for a save under way and writes this process's checksums of complete checkpoints that lack them."""
        response, self._under_way = self._under_way, None
        if response is not None:
            response.result()
        self._manager.wait()
        index, count = jax.process_index(), jax.process_count()
        for checkpoint in self._manager.checkpoints:
            if (folder := self.folder(checkpoint.step)).is_dir() and not has_checksums(folder, index=index):
                with contextlib.suppress(FileNotFoundError):  # the first process may be deleting an old step
                    write_checksums(folder, index=index, count=count)


class SavedArrays:
    """The arrays of one checkpoint by their path in the saved state, for readers without the run's config.

    Any part of an array can be read separately; the chunks that contain it (shards of the run that wrote it) are read
    whole, so who needs several parts goes by chunks.
    """

    def __init__(self, folder: Place):
        place = folder if staging.is_address(folder) else staging.locate(folder)
        self.path = place if staging.is_address(place) else place.resolve()
        try:
            tree = _read_shapes(self.path)
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise UserError(f"{folder}: not a whole checkpoint of a run ({type(error).__name__})") from None
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        self._entries = {tuple(_read_key(key) for key in path): leaf for path, leaf in leaves}
        self._open: dict[tuple[str | int, ...], Any] = {}
        self._lock = threading.Lock()
        # One cache for all arrays, so that the tree of the database is read once.
        self._context = tensorstore.Context({"cache_pool": {"total_bytes_limit": TREE_CACHE}})

    @property
    def paths(self) -> tuple[tuple[str | int, ...], ...]:
        """Paths of all arrays; list indices are integers."""
        return tuple(self._entries)

    def shape(self, path: tuple[str | int, ...]) -> tuple[int, ...]:
        return tuple(self._entries[path].shape)

    def dtype(self, path: tuple[str | int, ...]) -> np.dtype:
        return np.dtype(self._entries[path].dtype)

    def chunks(self, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[int, int], ...]]:
        """The parts in which an array is stored, as (start, stop) on every axis."""
        shape, steps = self.shape(path), self._store(path).chunk_layout.read_chunk.shape
        grid = [range(0, size, step) for size, step in zip(shape, steps or (), strict=True)]
        for corner in itertools.product(*grid):
            parts = zip(corner, steps or (), shape, strict=True)
            yield tuple((start, min(start + step, size)) for start, step, size in parts)

    def read(self, path: tuple[str | int, ...], place: tuple[int | slice, ...] = ()) -> np.ndarray:
        """The array, or its part at the index `place` on the first axes. Raises UserError if its file is damaged."""
        store = self._store(path)
        try:
            return np.asarray(store[place].read().result())
        except ValueError as error:
            raise self._damaged(path, error) from None

    def _store(self, path: tuple[str | int, ...]) -> Any:
        with self._lock:
            if path not in self._open:
                folder, name = self.path / STATE, ".".join(map(str, path))
                base = f"{folder}/" if staging.is_address(folder) else f"file://{folder}/"
                store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
                spec = {"driver": "zarr", "kvstore": store}
                try:
                    self._open[path] = tensorstore.open(spec, open=True, context=self._context).result()
                except ValueError as error:
                    raise self._damaged(path, error) from None
            return self._open[path]

    def _damaged(self, path: tuple[str | int, ...], error: ValueError) -> UserError:
        reason = " ".join(str(error).split())[:160]
        return UserError(f"{self.path}: array {'.'.join(map(str, path))!r} cannot be read ({reason})")


def newest_checkpoint(workdir: pathlib.Path) -> pathlib.Path | None:
    """Folder of a run's newest undamaged checkpoint, or None if it has saved none; changes nothing.

    Damaged checkpoints are skipped with a warning. Files are read to verify them once a process; in a run of several
    processes only their sizes are compared here, and `verify_share` reads a share of them. Raises UserError if all are
    damaged.
    """
    home = staging.locate(workdir) / FOLDER
    steps = [folder for folder in home.iterdir() if folder.name.isdecimal()] if home.is_dir() else []
    for folder in sorted(steps, key=lambda folder: int(folder.name), reverse=True):
        if not (damage := _find_flaw(folder) or _find_damage_once(folder, sizes=_count_processes() > 1)):
            return workdir / FOLDER / folder.name
        log.warning("%s is damaged (%s)", folder, damage)
    if steps:
        raise UserError(f"{home}: none of the {len(steps)} checkpoints is whole ({damage})")
    return None


def verify_share(folder: Place) -> None:
    """Reads every n-th file of a checkpoint that a run of n processes takes as its model. Raises UserError if one is
    damaged.
    """
    if (count := _count_processes()) > 1:
        place = folder if staging.is_address(folder) else staging.locate(folder)
        if damage := _find_damage_once(place, index=jax.process_index(), count=count):
            raise UserError(f"{folder} is damaged ({damage}); name an earlier checkpoint, WORKDIR/{FOLDER}/STEP")


_verified: set[tuple[Any, ...]] = set()  # checkpoints found whole by this process, with their files' sizes and times


def _find_damage_once(folder: Place, **how: Any) -> str:
    """`find_damage`, which is asked again only for files that have changed since they were found whole."""
    key = (str(folder), *sorted(how.items()), tuple(describe_files(folder)))
    if key in _verified:
        return ""
    if not (damage := find_damage(folder, **how)):
        _verified.add(key)
    return damage


def _count_processes() -> int:
    """Processes of this run, without starting a device."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def _make_context() -> ocp.Context:
    """Settings of orbax: arrays in the format zarr 2, as in earlier checkpoints, and metadata as JSON."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=FACTS)
    context = ocp.Context()
    context.array.saving.use_zarr3 = False
    context.checkpointables.registry = registry
    return context


def _read_shapes(folder: Place) -> Any:
    """Shapes and dtypes of a checkpoint's arrays, as a tree. Raises ValueError if they cannot be read, and errors of
    orbax for a folder that is no checkpoint.
    """
    with _make_context():
        tree = ocp.checkpointables_metadata(folder).metadata[STATE]
    if tree is None:  # orbax has logged why
        raise ValueError("its arrays cannot be read")
    return tree


def _find_flaw(folder: Place) -> str:
    """Flaw of a checkpoint's parts: one is missing, or they are those of another step; "" if there is none."""
    parts = [(f"{STATE}/_METADATA",), (f"{STATE}/manifest.ocdbt",), (f"{FACTS}/data.json", f"{FACTS}/metadata")]
    missing = (names[0] for names in parts if not any((folder / name).is_file() for name in names))
    if name := next(missing, ""):
        return f"{name} is missing"
    if not (facts := folder / FACTS / "data.json").is_file():  # of interface v0
        return ""
    try:
        step = json.loads(facts.read_text()).get(SAVED_STEP)
    except (OSError, ValueError, AttributeError):
        return f"{FACTS}/data.json cannot be read"
    return "" if step in (None, int(folder.name)) else f"it has the state of step {step}"


def _read_key(entry: Any) -> str | int:
    key = str(next(getattr(entry, name) for name in ("key", "idx", "name") if hasattr(entry, name)))
    return int(key) if key.isdigit() else key
