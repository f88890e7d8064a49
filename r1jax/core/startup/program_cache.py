"""Compiled programs kept on disk between runs, by jax's persistent compilation cache in a folder of the user's.

Compilation takes most of a short command's time, and the next start of the command needs the same programs. jax finds
a program by a hash of its code, its compile options, the devices and the versions of jax and XLA, so that a program of
another version is never loaded. Code for a CPU may use instructions that another CPU lacks, and a home folder may be
shared by several machines: every kind of CPU has a folder of its own.

jax reads these settings when it is imported. They are environment variables here, so that checking a command's
arguments does not import jax; a jax that is already imported is told as well.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pathlib
import platform
import sys
import warnings

FLAG = "compile_cache"
HELP = (
    "Folder in which compiled programs are kept for the next start, or off. Default: $JAX_COMPILATION_CACHE_DIR, else "
    "~/.cache/r1jax/xla, at most 4 GiB."
)
OFF = ("off", "none", "false", "0")
SIZE_LIMIT = 4 * 2**30  # bytes; the programs that were not used for longest are deleted first
SHORTEST = 0.2  # seconds; reading a program that compiles faster would save nothing


def keep_programs(folder: str | None = None) -> pathlib.Path | None:
    """Turns the cache on for this process, before its first compilation, and returns the folder (None: off).

    folder: where to keep programs; "off" turns the cache off; None is the default folder, unless the environment
    names one (JAX_COMPILATION_CACHE_DIR), which is then left as it is, with its limits. A folder that cannot be written
    leaves the cache off: a command works without it.
    """
    if folder is not None and folder.lower() in OFF:
        _set("jax_enable_compilation_cache", False)
        return None
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None and named:
        return pathlib.Path(named)
    place = pathlib.Path(folder).expanduser() if folder else find_user_cache() / "xla" / identify_cpu()
    if not _is_writable(place):
        return None
    _remove_torn(place)
    _set("jax_compilation_cache_dir", str(place.resolve()))
    _set("jax_persistent_cache_min_compile_time_secs", SHORTEST)
    if importlib.util.find_spec("filelock"):  # jax needs it to delete programs while several processes run
        _set("jax_compilation_cache_max_size", SIZE_LIMIT)
    # A full disk or a locked file costs time, not results; jax would warn once for each program.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    return place


def find_user_cache() -> pathlib.Path:
    """The folder of what may be deleted at any time: $XDG_CACHE_HOME/r1jax, or ~/.cache/r1jax."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "r1jax"


def identify_cpu() -> str:
    """Name of the kind of CPU: architecture and a hash of its model and instruction sets."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:  # not Linux
        lines = [f"model name: {platform.processor()}"]
    kinds = {line for line in lines if line.lower().startswith(("model name", "flags", "features", "cpu part"))}
    return f"{platform.machine()}-{hashlib.sha256(repr(sorted(kinds)).encode()).hexdigest()[:8]}"


def _set(name: str, value: object) -> None:
    os.environ[name.upper()] = str(value)
    if "jax" in sys.modules:
        sys.modules["jax"].config.update(name, value)


def _is_writable(place: pathlib.Path) -> bool:
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return False
    return os.access(place, os.W_OK | os.X_OK)


def _remove_torn(place: pathlib.Path) -> None:
    """Removes programs without the time of their last use, which is written last: a killed process left them, and
    jax would neither replace nor delete them.
    """
    try:
        names = {entry.name for entry in os.scandir(place)}
        for name in names:
            stem = name.removesuffix("-cache")
            if stem != name and f"{stem}-atime" not in names:
                # Another process may be writing it at this moment; it then lacks the entry, and compiles once more.
                (place / name).unlink(missing_ok=True)
    except OSError:
        pass
