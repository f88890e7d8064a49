"""The structure that readers rely on: docstrings, file names, sizes of files and folders."""

import ast
import collections
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "r1jax"
FILES = sorted(PACKAGE.rglob("*.py"))
# Names that mean the same thing in every room: registries; mains and the module that does their work.
SHARED_NAMES = {"registry.py", "evaluate.py", "generate.py", "report.py"}
MOST_LINES, MOST_FILES, MOST_FOLDER_LINES = 400, 20, 3300
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def shown(path: Path, line: int = 1) -> str:
    return f"{path.relative_to(PACKAGE.parent)}:{line}"


def count_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def folders_of(package: Path) -> dict[Path, list[Path]]:
    folders = collections.defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        if path.name != "__init__.py":
            folders[path.parent].append(path)
    return folders


def misphrased(text: str) -> list[int]:
    """Lines of definitions whose docstring begins with What, As or Of instead of a verb or a noun phrase."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Module | Definition)]
    words = ((ast.get_docstring(node) or "").split(maxsplit=1)[:1] for node in nodes)
    return [
        getattr(node, "lineno", 1)
        for node, word in zip(nodes, words, strict=True)
        if word and word[0].rstrip(":,") in {"What", "As", "Of"}
    ]


def undocumented(text: str) -> list[str]:
    """Public top-level functions and classes without a docstring."""
    nodes = [node for node in ast.parse(text).body if isinstance(node, Definition)]
    return [node.name for node in nodes if not node.name.startswith("_") and not ast.get_docstring(node)]


def test_docstrings_begin_with_a_verb_or_a_noun_phrase():
    found = [shown(path, line) for path in FILES for line in misphrased(path.read_text())]
    assert not found, f"docstrings that begin with What, As or Of: {', '.join(found)}"


def test_everything_public_is_documented():
    found = [f"{shown(path)} {name}" for path in FILES for name in undocumented(path.read_text())]
    assert not found, f"public names without a docstring: {', '.join(found)}"


def test_a_file_name_has_one_meaning():
    rooms = collections.defaultdict(list)
    for path in FILES:
        rooms[path.name].append(shown(path))
    twice = {name: places for name, places in rooms.items() if len(places) > 1}
    assert set(twice) - {"__init__.py"} <= SHARED_NAMES, twice


def test_files_and_folders_are_small():
    found = [f"{shown(path)} has {lines} lines" for path in FILES if (lines := count_lines(path)) > MOST_LINES]
    for folder, paths in folders_of(PACKAGE).items():
        lines = sum(map(count_lines, paths))
        if len(paths) > MOST_FILES or lines > MOST_FOLDER_LINES:
            found.append(f"{folder.relative_to(PACKAGE.parent)}/ has {len(paths)} files and {lines} lines")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('"""What of it is kept."""', [1]),
        ('"""As: before."""', [1]),
        ('"""Rules."""\n\n\nclass Rule:\n    """Of one."""', [4]),
        ('"""Rules."""\n\n\ndef rule():\n    """Assigns one."""', []),
        ("import ast", []),
    ],
)
def test_the_checker_reads_first_words(text: str, lines: list[int]):
    assert misphrased(text) == lines


def test_the_checker_sees_what_is_public():
    text = 'def a():\n    """A."""\n\n\ndef b(): ...\n\n\nclass C: ...\n\n\ndef _d(): ...\n'
    assert undocumented(text) == ["b", "C"]
