"""The house keeps its floors: a file imports from its own folder and from lower floors, never sideways, never up.

The table below is the floor plan of docs/design.md. Imports are read from the source, wherever in a file they stand
(also inside functions, under `if TYPE_CHECKING`, and relative ones), so that no order of running can hide one.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "r1jax"
MAINS = "mains"  # the files directly in the package
FLOORS = (
    ("core",),
    ("text", "losses", "sandbox"),
    ("models",),
    ("weights", "data", "rewards", "environments", "rollout", "learner"),
    ("eval",),
    ("runs",),
    ("rl", "tuning"),
    ("serving",),
    ("stages",),
    ("aot", "checkup"),
    (MAINS,),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path, package: Path) -> str:
    """The folder of the package that a file lives in; `mains` for a file directly in it, '' for its __init__."""
    parts = path.relative_to(package).parts
    if len(parts) > 1:
        return parts[0]
    return "" if parts[0] == "__init__.py" else MAINS


def absolute_name(node: ast.ImportFrom, path: Path, package: Path) -> str:
    """The module that `from X import …` names, with the leading dots resolved."""
    if not node.level:
        return node.module or ""
    parents = path.relative_to(package.parent).parent.parts
    base = parents[: len(parents) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def imported_names(node: ast.AST, path: Path, package: Path) -> list[str]:
    """Dotted names that a statement imports; `from a import b` gives a.b, whatever b is."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{absolute_name(node, path, package)}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            return [node.args[0].value]
    return []


def imported_rooms(path: Path, package: Path) -> Iterator[tuple[int, str, str]]:
    """(line, dotted name, room) of every import of ours; names that the package's own __init__ holds are in no room."""
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        for name in imported_names(node, path, package):
            first, *rest = name.split(".")
            if first != package.name or not rest:
                continue
            if (package / rest[0]).is_dir():
                yield node.lineno, name, rest[0]
            elif (package / f"{rest[0]}.py").is_file():
                yield node.lineno, name, MAINS


def typing_lines(path: Path) -> set[int]:
    """Lines of a file under `if TYPE_CHECKING`, which never run."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            found |= {line for inner in node.body for line in range(inner.lineno, (inner.end_lineno or 0) + 1)}
    return found


def faults(package: Path) -> list[str]:
    """One line for each import that goes sideways or up, and for each folder that stands on no floor."""
    found = []
    for path in sorted(package.rglob("*.py")):
        here, shown = room_of(path, package), path.relative_to(package.parent)
        if here and here not in FLOOR_OF:
            found.append(f"{shown}:1: the folder {here}/ is on no floor; put it into FLOORS")
            continue
        floor = FLOOR_OF.get(here, -1)  # the package's __init__ lies below all floors: everybody's import runs it
        untold = () if here else typing_lines(path)  # it may tell a type checker where its lazy names come from
        for line, name, there in imported_rooms(path, package):
            if line in untold and there == MAINS:
                continue
            if there != here and FLOOR_OF.get(there, len(FLOORS)) >= floor:
                way = "sideways" if FLOOR_OF.get(there) == floor else "up"
                found.append(f"{shown}:{line}: {here or 'the package'} imports {name}, which goes {way} to {there}")
    return found


def test_no_import_goes_sideways_or_up():
    found = faults(PACKAGE)
    assert not found, "\n".join(["imports that break the floor plan:", *found])


def test_the_readme_shows_every_room_and_main():
    readme = (PACKAGE.parent / "README.md").read_text()
    rooms = [f"  {path.name}/ " for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()]
    mains = [f"  {path.name} " for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    missing = [name.strip() for name in sorted(rooms + mains) if name not in readme]
    assert not missing, f"README.md's tree of the package lacks {', '.join(missing)}"


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        (
            "models/families/llama.py",
            "from house.core import tree\nimport house.text.chat\nfrom . import attention",
            None,
        ),
        ("core/tree.py", "import house.models", "core/tree.py:1: core imports house.models, which goes up to models"),
        ("core/tree.py", "def f():\n    from house.text.chat import render", "core/tree.py:2: core imports"),
        (
            "data/rows.py",
            "from house.rewards.base import score",
            "data/rows.py:1: data imports house.rewards.base.score",
        ),
        ("data/rows.py", "from .. import rewards", "which goes sideways to rewards"),
        ("data/deep/rows.py", "from ...stages.grpo import run", "which goes up to stages"),
        ("text/chat.py", "from ..losses.policy import clip", "which goes sideways to losses"),
        ("text/chat.py", "from house import train", "which goes up to mains"),
        ("text/chat.py", "from house import __version__", None),
        (
            "core/tree.py",
            "import importlib\nimportlib.import_module('house.eval')",
            "core/tree.py:2: core imports house.eval",
        ),
        ("__init__.py", "from house.core import tree", "__init__.py:1: the package imports house.core.tree"),
        ("__init__.py", "if TYPE_CHECKING:\n    from house.train import main", None),
        (
            "__init__.py",
            "if TYPE_CHECKING:\n    from house.core import tree",
            "__init__.py:2: the package imports house",
        ),
        ("train.py", "from house.stages import grpo\nfrom house import report", None),
        ("helpers/odd.py", "", "helpers/odd.py:1: the folder helpers/ is on no floor"),
    ],
)
def test_the_checker_sees_what_it_should(tmp_path: Path, file: str, text: str, expected: str | None):
    package = tmp_path / "house"
    for room in FLOOR_OF:
        (package / room).mkdir(parents=True)
    (package / MAINS).rmdir()
    (package / "train.py").touch()
    (package / "report.py").touch()
    (package / file).parent.mkdir(parents=True, exist_ok=True)
    (package / file).write_text(text)
    found = faults(package)
    if expected is None:
        assert not found
    else:
        assert len(found) == 1
        assert expected in found[0]


# Run in a process of its own, with a platform that does not exist: whatever asks jax for a device fails there and then.
IMPORT_ALL = """
import importlib, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"{event} {arguments} while importing {name}")

name = ""
sys.addaudithook(refuse)
for name in sys.argv[1:]:
    importlib.import_module(name)
from absl import flags
ours = [module for module in flags.FLAGS.flags_by_module_dict() if module in sys.argv]
assert not ours, f"flags defined while importing {ours}"
import jax
try:
    jax.devices()
except RuntimeError:
    print("untouched")
"""


def test_importing_touches_no_device_no_flag_no_network():
    files = [path.relative_to(PACKAGE.parent).with_suffix("") for path in sorted(PACKAGE.rglob("*.py"))]
    names = [".".join(path.parts).removesuffix(".__init__") for path in files]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names],
        env={**os.environ, "JAX_PLATFORMS": "none_such"},
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1:] == ["untouched"]
