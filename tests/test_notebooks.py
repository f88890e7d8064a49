"""Notebooks hold code that is up to date and no outputs; the slow test runs each from top to bottom."""

import ast
import importlib
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read_code(path: pathlib.Path) -> tuple[str, list[dict[str, Any]]]:
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    return "\n\n".join("".join(cell["source"]) for cell in cells), cells


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_names_what_is_there_and_keeps_no_output(path: pathlib.Path):
    code, cells = read_code(path)
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        module = importlib.import_module(str(node.module))
        for name in node.names:
            assert hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}")
    for word in code.split('"'):
        if word.startswith("--config=") or word.startswith("configs/"):
            assert (ROOT / word.removeprefix("--config=")).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: pathlib.Path, tmp_path: pathlib.Path, demo_model: pathlib.Path):
    for name in ("configs", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [sys.executable, "-c", read_code(path)[0]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
