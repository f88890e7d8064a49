"""Runs notebooks from top to bottom and saves their outputs in them, with a digest of the code that made them.

usage: python notebooks/execute.py [--folder=DIR] [NOTEBOOK.ipynb …]     all notebooks without a name
needs: nbclient, ipykernel, matplotlib; the first cell of a notebook sets up r1jax.

They run in --folder (default: a new empty one); the repository is found through R1JAX_SOURCE. tests/test_notebooks.py
compares the digest with the code, so a changed cell asks for a new run.
"""

import argparse
import hashlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def digest(cells: list[dict]) -> str:
    """Of the code of a notebook."""
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def execute(path: Path, folder: Path) -> None:
    """Runs one notebook; its file changes only if every cell ran."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    begin = time.monotonic()
    NotebookClient(
        notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    for number, cell in enumerate(notebook.cells):
        cell.metadata = {}
        cell.id = f"cell-{number}"
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "text" in output:  # no bars, and no places of this machine
                    output.text = (
                        re.sub(r"[^\n]*\r", "", output.text)
                        .replace(f"{folder}/", "")
                        .replace(str(HERE.parent), "r1jax")
                    )
    notebook.metadata["r1jax"] = {"code": digest(notebook.cells)}
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.monotonic() - begin:.0f} s", flush=True)


def main() -> None:
    """Runs the notebooks of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("notebooks", nargs="*", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("R1JAX_SOURCE", str(HERE.parent))
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="notebooks-"))
    folder.mkdir(parents=True, exist_ok=True)
    for path in arguments.notebooks or sorted(HERE.glob("*.ipynb")):
        execute(path, folder.resolve())


if __name__ == "__main__":
    sys.exit(main())
