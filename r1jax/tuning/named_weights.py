"""Checkpoints of the service: weights under addresses that clients know, each in a file of its own in the workdir."""

from __future__ import annotations

import pathlib
import re
import shutil
import time
import uuid
from typing import Any

from r1jax.core.errors import UserError
from r1jax.tuning.adapter_files import SUFFIX
from r1jax.tuning.store import Store, Thing

SCHEME = "tinker://"
FOLDERS = {"training": "weights", "sampler": "sampler_weights"}
KEPT_UNNAMED = 16  # unnamed weights for sampling that a model keeps
_HOME = "checkpoints"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class NamedWeights:
    """The checkpoints that `store` lists, with their files in `workdir`.

    Files are deleted by `sweep`, once what named them is forgotten: a server killed in between loses none.
    """

    def __init__(self, store: Store, workdir: pathlib.Path):
        self.store, self.workdir = store, workdir
        self._unused: list[str] = []
        self._delete_strangers()

    def address(self, model: str, kind: str, name: str) -> str:
        """The address of a model's checkpoint. Raises UserError for a name that cannot be a file's."""
        if not _NAME.fullmatch(name):
            raise UserError(f"the name of a checkpoint must be letters, digits, '.', '_' and '-', got {name[:60]!r}")
        return f"{SCHEME}{model}/{FOLDERS[kind]}/{name}"

    def find(self, path: str) -> Thing:
        """A checkpoint by its address. Raises UserError if there is none."""
        found = self.store.get("checkpoint", path)
        if found is not None and _is_over(found):
            self.delete(found)
            self.sweep()
            found = None
        if found is None:
            raise UserError(f"there is no checkpoint {path[:200]!r}; list_checkpoints says which there are")
        return found

    def list(self, model: str | None = None) -> list[Thing]:
        """Checkpoints that have a name, newest first; those that have expired are deleted."""
        found = self.store.things("checkpoint", model)
        for old in filter(_is_over, found):
            self.delete(old)
        self.sweep()
        return [one for one in found if one.body["is_named"] and not _is_over(one)]

    def record(self, path: str, model: str, body: dict[str, Any], old: Thing | None) -> None:
        """Lists a checkpoint, in place of an `old` one; of unnamed ones only the newest are kept."""
        if old is not None:
            self.delete(old)
        self.store.put("checkpoint", path, body, parent=model)
        if not body["is_named"]:
            unnamed = [one for one in self.store.things("checkpoint", model) if not one.body["is_named"]]
            for one in unnamed[KEPT_UNNAMED:]:
                self.delete(one)

    def delete(self, checkpoint: Thing) -> None:
        """Forgets a checkpoint; `sweep` deletes its file."""
        self.store.delete("checkpoint", checkpoint.id)
        self.discard(checkpoint.body["file"])

    def discard(self, file: str) -> None:
        """Marks a file that nothing names any more."""
        self._unused.append(file)

    def sweep(self) -> None:
        """Deletes files that nothing names."""
        while self._unused:
            (self.workdir / self._unused.pop()).unlink(missing_ok=True)

    def copy(self, source: Thing, model: str, name: str, *, expires: float | None) -> str:
        """Copies a checkpoint under another model; returns the address."""
        path, file = self.address(model, source.body["kind"], name), self.new_file(model, "copies")
        shutil.copyfile(self.workdir / source.body["file"], self.workdir / file)
        self.store.put("checkpoint", path, {**source.body, "file": file, "expires": expires}, parent=model)
        return path

    def new_file(self, model: str, folder: str) -> str:
        """A path, in the workdir, of a file that is not there yet."""
        home = pathlib.Path(_HOME) / model.replace(":", "_") / folder
        (self.workdir / home).mkdir(parents=True, exist_ok=True)
        return str(home / f"{uuid.uuid4().hex}{SUFFIX}")

    def _delete_strangers(self) -> None:
        """Deletes files that a killed server wrote and did not record."""
        things = [*self.store.things("checkpoint"), *self.store.things("model")]
        known = {thing.body.get("file") for thing in things}
        for file in (self.workdir / _HOME).rglob(f"*{SUFFIX}"):
            if str(file.relative_to(self.workdir)) not in known:
                file.unlink()
        for draft in (self.workdir / _HOME).rglob(".draft-*"):
            shutil.rmtree(draft, ignore_errors=True)


def _is_over(checkpoint: Thing) -> bool:
    return bool(checkpoint.body["expires"]) and checkpoint.body["expires"] < time.time()
