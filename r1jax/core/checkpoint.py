"""Checkpoints of a run by orbax: arrays (each process its shards), and plain metadata (step, data position) as JSON
beside them.

A checkpoint exists once it is complete: orbax renames it into place, so a run killed while saving resumes from the
one before.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from r1jax.core.errors import UserError


class Checkpoints:
    """`workdir/checkpoints/STEP`; keeps the newest `keep`."""

    def __init__(self, workdir: pathlib.Path, *, keep: int = 2):
        # On a CPU the "copy to the host" may be a view of buffers that the next update overwrites: save at once there.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=jax.default_backend() != "cpu"
        )
        self._manager = ocp.CheckpointManager((workdir / "checkpoints").resolve(), options=options)

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def folder(self, step: int) -> pathlib.Path:
        """Where a step lies."""
        return pathlib.Path(self._manager.directory) / str(step)

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Starts to save; arrays may be donated as soon as this returns."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), facts=ocp.args.JsonSave(metadata))
        self._manager.save(step, args=args)

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """(state in the places of `abstract_state`, metadata). Raises UserError if it does not fit this run's model."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), facts=ocp.args.JsonRestore())
        try:
            self._check_dtypes(step, abstract_state)
            restored = self._manager.restore(step, args=args)
        except (ValueError, KeyError, FileNotFoundError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"the checkpoint of step {step} in {self._manager.directory} does not fit this run ({reason[:200]}); "
                "resume with the same model and optimizer or start in another --workdir"
            ) from None
        return restored["state"], restored["facts"]

    def _check_dtypes(self, step: int, abstract_state: Any) -> None:
        """Raises ValueError where an array was saved in another dtype: restoring would round it without a word."""
        saved = ocp.PyTreeCheckpointHandler().metadata(self._manager.directory / str(step) / "state").tree
        name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
        dtypes = {name(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_state):
            if (dtype := dtypes.get(name(path), leaf.dtype)) != leaf.dtype:
                raise ValueError(f"{name(path)} was saved as {dtype}, this run has {leaf.dtype}")

    def close(self) -> None:
        """Waits for a save under way."""
        self._manager.wait_until_finished()
        self._manager.close()


class SavedArrays:
    """The arrays of one checkpoint by their path in the saved state, for readers that do not know the run.

    Any part of an array can be read by itself; the chunks it lies in, shards of the run that wrote it, are read whole.
    """

    def __init__(self, folder: pathlib.Path):
        self.path = folder.resolve()
        try:
            tree = ocp.PyTreeCheckpointHandler().metadata(self.path / "state").tree
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise UserError(f"{folder}: not a whole checkpoint of a run ({type(error).__name__})") from None
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        self._entries = {tuple(_read_key(key) for key in path): leaf for path, leaf in leaves}
        self._open: dict[tuple[str | int, ...], Any] = {}

    @property
    def paths(self) -> tuple[tuple[str | int, ...], ...]:
        """Of all arrays; what counts is a whole number."""
        return tuple(self._entries)

    def shape(self, path: tuple[str | int, ...]) -> tuple[int, ...]:
        return tuple(self._entries[path].shape)

    def dtype(self, path: tuple[str | int, ...]) -> np.dtype:
        return np.dtype(self._entries[path].dtype)

    def read(self, path: tuple[str | int, ...], place: tuple[int, ...] = ()) -> np.ndarray:
        """The array, or its part at `place` on the first axes. Raises UserError if its file is damaged."""
        folder, name = self.path / "state", self._entries[path].name
        try:
            if path not in self._open:
                store = {"driver": "ocdbt", "base": f"file://{folder}/", "path": f"{name}/"}
                self._open[path] = tensorstore.open({"driver": "zarr", "kvstore": store}, open=True).result()
            return np.asarray(self._open[path][place].read().result())
        except ValueError as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{self.path}: array {name!r} cannot be read ({reason})") from None


def newest_checkpoint(workdir: pathlib.Path) -> pathlib.Path | None:
    """The folder of a run's newest complete checkpoint, or None; looks without touching a run under way."""
    steps = [folder for folder in (workdir / "checkpoints").glob("*") if folder.name.isdigit()]
    return max(steps, key=lambda folder: int(folder.name), default=None)


def _read_key(entry: Any) -> str | int:
    key = str(next(getattr(entry, name) for name in ("key", "idx", "name") if hasattr(entry, name)))
    return int(key) if key.isdigit() else key
