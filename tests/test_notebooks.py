"""Notebooks hold code that is up to date, and what it printed; the slow test runs each from top to bottom."""

import ast
import importlib
import importlib.util
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


def digest(cells: list[dict[str, Any]]) -> str:
    spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.digest(cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_names_what_is_there(path: pathlib.Path):
    code, _ = read_code(path)
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert imports or "import r1jax" in code
    for node in imports:
        module = importlib.import_module(str(node.module))
        for name in node.names:
            assert hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}")
    for word in code.split('"'):
        if word.startswith("--config=") or word.startswith("configs/"):
            assert (ROOT / word.removeprefix("--config=").partition(":")[0]).is_file()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_outputs_are_those_of_its_code(path: pathlib.Path):
    notebook = json.loads(path.read_text("utf-8"))
    _, cells = read_code(path)
    outputs = [output for cell in cells for output in cell["outputs"]]
    counts = list(range(1, len(cells) + 1)) if outputs else [None] * len(cells)
    assert [cell["execution_count"] for cell in cells] == counts, "all cells or none have run"
    assert all(output["output_type"] != "error" for output in outputs) and str(ROOT) not in json.dumps(outputs)
    saved = notebook["metadata"].get("r1jax", {}).get("code")
    assert saved == (digest(cells) if outputs else None), "run python notebooks/execute.py"


def test_all_set_themselves_up_alike():
    starts = []
    for path in NOTEBOOKS:
        sources = ["".join(cell["source"]) for cell in read_code(path)[1]]
        first = next(number for number, source in enumerate(sources) if source.startswith("# Sets this notebook up"))
        assert first == ("eight devices" in sources[0]), "nothing but the flag of a mesh goes before"
        starts.append(sources[first : first + 2])
    assert len(starts) == 6 and all(start == starts[0] for start in starts)
    assert 'SOURCE = os.environ.get("R1JAX_SOURCE", "")' in starts[0][0]
    assert "Change runtime type" in starts[0][0] and "Accelerator" in starts[0][0]


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
