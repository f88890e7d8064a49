"""Folders of this machine that the sandbox shows read-only: programs and libraries of the system, and the Python that
runs us with its library.

Not shown: the rest of /usr (`/usr/src`, `/usr/local`, `/usr/share`), our virtual environment, the folder that holds
this package, and the current folder, also where they lie below a folder that is shown.
"""

import functools
import os
import sys
import sysconfig
from pathlib import Path

_PROGRAMS = ("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32", "/usr/share/zoneinfo")
_COMPILER = ("/usr/include", "/usr/libexec")
_TOP = ("/lib", "/lib32", "/lib64", "/libx32", "/bin")
_SYSTEM_PREFIXES = ("/usr", "/usr/local", "/")
_LIBRARIES = ("site-packages", "dist-packages")


@functools.cache
def find_python() -> str:
    """Path of the base Python that runs us, outside the virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def mount_arguments(*, compiles: bool) -> list[str]:
    """Arguments of bwrap that mount the system; with the compiler's headers if `compiles`."""
    shown = [*_PROGRAMS, *(_COMPILER if compiles else ()), *_find_interpreter()]
    shown = [path for path in shown if os.path.exists(path)]
    arguments: list[str] = []
    # Without these, bwrap would make the folders above a mount for its own user alone.
    for folder in sorted({str(above) for path in (*shown, "/files/x") for above in Path(path).parents} - {"/"}):
        arguments += ["--dir", folder]
    for path in _TOP:
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            arguments += ["--ro-bind", path, path]
    for path in shown:
        arguments += ["--ro-bind", path, path]
    arguments += ["--dir", "/etc", "--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
    for path in _find_private():
        if any(_lies_below(path, place) for place in (*shown, *_TOP)):
            arguments += ["--perms", "0555", "--size", "4096", "--tmpfs", path, "--remount-ro", path]
    return arguments


@functools.cache
def _find_interpreter() -> tuple[str, ...]:
    """Files and folders of the base Python."""
    prefix = os.path.realpath(sys.base_prefix)
    if prefix not in _SYSTEM_PREFIXES:
        return find_python(), f"{prefix}/lib", f"{prefix}/lib64"
    places = [find_python(), sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    places += map(str, Path(sysconfig.get_config_var("LIBDIR") or f"{prefix}/lib").glob("libpython*"))
    return tuple(dict.fromkeys(place for place in places if not _lies_below(place, "/usr/lib", "/usr/bin")))


def _find_private() -> list[str]:
    """Folders that no program may see, unless the interpreter is in them."""
    package = os.path.realpath(Path(__file__).parents[1])
    repository = os.path.dirname(package)
    found = [package] if os.path.basename(repository) in _LIBRARIES else [repository]
    try:
        found.append(os.path.realpath(os.getcwd()))
    except FileNotFoundError:
        pass
    needed = (find_python(), os.path.realpath(sysconfig.get_path("stdlib")))
    return [path for path in dict.fromkeys(found) if not any(_lies_below(place, path) for place in needed)]


def _lies_below(path: str, *folders: str) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)
