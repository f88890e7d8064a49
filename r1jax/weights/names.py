"""Names of MODELs: local files and folders, and hub names with an optional revision (`org/name[@revision]`).

A name means one thing: an existing file or folder, else a model of the hub (through huggingface_hub and its cache).
Nothing else is taken in its place. Of a hub name or a bucket only the small files are copied to this host; weights are
read where they are, unless the hub's cache has them already (`hf download org/name` puts them there).
"""

from __future__ import annotations

import logging
import pathlib
import re
from typing import Any

from r1jax.core.buckets.staging import is_address, stage
from r1jax.core.errors import UserError
from r1jax.core.outputs.ownership import shorten
from r1jax.core.tensors.ranges import is_served, serve_from_hub
from r1jax.core.tensors.tensor_reader import open_tensors

log = logging.getLogger(__name__)

LOCAL = ("runs", "models")  # folders of our commands: a path in them is no hub name
_HUB_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")
_PATTERNS = ["*.json", "*.jinja", "tokenizer.model"]


def split_hub_name(name: str) -> tuple[str, str | None] | None:
    """(`org/name`, revision or None) of a text that can be a hub name; None for any other text."""
    found = _HUB_NAME.fullmatch(name)
    return None if found is None or found[1].endswith(".gguf") else (found[1], found[2])


def find_hub_name(name: str, fetch: str = "") -> tuple[str, str | None] | None:
    """The parts of a text that is taken for a hub name. It is not where a command makes the model (`fetch`), and not
    where the part before the slash is a folder here or one of `LOCAL`, unless a revision is given.
    """
    hub = split_hub_name(name)
    if hub is None or fetch:
        return None
    folder = hub[0].partition("/")[0]
    return None if hub[1] is None and (folder in LOCAL or pathlib.Path(folder).is_dir()) else hub


def find_model(name: str | pathlib.Path, fetch: str = "") -> pathlib.Path:
    """Local folder or file of a MODEL; a hub name that is no local path, and a folder or run in a bucket (`gs://`), get
    a local folder with their small files that stands for them.

    fetch: the command that creates this model, for the message. Raises UserError, with all places that were searched.
    """
    if is_address(name):
        if str(name).endswith(".gguf"):
            raise UserError(f"{name}: a .gguf file in a bucket is not read there; copy it here and name the copy")
        return stage(str(name))
    local, text = pathlib.Path(name), str(name)
    try:
        if text and local.exists():
            return local
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"no model {shorten(text)}: {reason} (--model, config.model.name)") from None
    cure = f"; {describe_fetch(fetch)}" if fetch else ""
    hub = find_hub_name(text, fetch)
    if hub is None:
        raise UserError(f"no model {text}: there is no file or folder {local.absolute()}{cure}")
    try:
        return _download(*hub)
    except Exception as error:  # the hub's errors have no common base; each means that the model is unavailable
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"no model {text}: there is no file or folder {local.absolute()}, and the hub does not give it "
            f"({reason}){cure}"
        ) from None


def describe_fetch(fetch: str) -> str:
    """Words for the command that makes a model; an installed package lacks the scripts of launch/."""
    is_here = all(pathlib.Path(part).exists() for part in fetch.split() if part.startswith("launch/"))
    return f"`{fetch}` makes it{'' if is_here else ' (in a clone of r1jax)'}"


def find_local_hub(name: str) -> pathlib.Path | None:
    """The folder of a hub name in the local cache, or None where its config.json is not there; fetches nothing."""
    from huggingface_hub import try_to_load_from_cache

    hub = find_hub_name(name)
    if hub is None:
        return None
    try:
        found = try_to_load_from_cache(hub[0], "config.json", revision=hub[1])
    except ValueError:  # no name that a hub could have
        return None
    return pathlib.Path(found).parent if isinstance(found, str) else None


def find_revision(folder: pathlib.Path) -> str:
    """The commit of a folder in the hub's cache (snapshots/COMMIT); "" for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else ""


def _download(name: str, revision: str | None) -> pathlib.Path:
    """Folder of a hub name in the local cache, with the small files at least; a complete copy is not requested again,
    and what one lacks is read from the hub.
    """
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {"revision": revision, "allow_patterns": _PATTERNS}
    try:
        folder = pathlib.Path(snapshot_download(name, local_files_only=True, **options))
        if is_served(folder):
            return folder
        if not any(folder.glob("adapter_model*.safetensors")):
            open_tensors(folder)  # the cache may hold other files only, or an interrupted download
        return folder
    except (FileNotFoundError, UserError):  # LocalEntryNotFoundError: not in the cache
        folder = pathlib.Path(snapshot_download(name, **options))
    serve_from_hub(folder, name)
    if not any(folder.glob("*.safetensors")):
        log.info("%s: weights are read from the hub at each start; `hf download %s` keeps them here", name, name)
    return folder
