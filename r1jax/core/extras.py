"""Optional packages, each in an extra of setup.py: imported where they are used, with the line that installs them.

No message names r1jax on a package index, where no such project of ours exists: a checkout is installed from its
folder, and for an installed wheel the extra's packages are named, as the wheel's metadata lists them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pathlib
import shlex
import sys
from typing import Any

from packaging.markers import Marker

from r1jax.core.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]  # of the repository, in a checkout


def require(module: str, extra: str, use: str) -> Any:
    """The imported module. Raises UserError with `use`, which needs it, and the line that installs `extra`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name and error.name.partition(".")[0] != module.partition(".")[0]:  # it is there, and broken
            raise UserError(f"{use}: the package {module} does not import ({error})") from error
        raise UserError(missing_package(module, extra, use)) from None


def check_installed(module: str, extra: str, use: str) -> None:
    """Like `require`, without importing the package, which may take seconds."""
    if sys.modules.get(module) is None and importlib.util.find_spec(module) is None:
        raise UserError(missing_package(module, extra, use))


def missing_package(module: str, extra: str, use: str) -> str:
    """The message for a missing package."""
    return f"{use} needs the package {module.partition('.')[0]}: {install_line(extra)}"


def install_line(extra: str) -> str:
    """The command that installs an extra of r1jax beside it."""
    if (ROOT / "setup.py").is_file():
        folder = "." if pathlib.Path.cwd() == ROOT else str(ROOT)
        return f"pip install -e '{folder}[{extra}]'"
    packages = []
    for requirement in importlib.metadata.requires("r1jax") or ():
        package, _, marker = requirement.partition(";")
        if marker and Marker(marker).evaluate({"extra": extra}):
            packages.append(shlex.quote(package.strip().replace(" ", "")))
    return " ".join(["pip install", *packages])
