"""A bad input: a command line, the files that it finds, and what its answer must name."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

Make = Callable[[pathlib.Path, pathlib.Path], None]  # (path to write, the sound tiny model)
Files = Mapping[str, str | bytes | Make]
NONE: Files = {}


@dataclasses.dataclass(frozen=True)
class Case:
    """One command line, which must end with `code`.

    Attributes:
      name: short name, unique within the command.
      argv: arguments; {here} is the folder of the case, {model} a sound tiny model, {root} the repository.
      words: texts that the error line must have: the key or flag, and what is said of it.
      files: path in the folder -> content, or what writes it.
      code: exit code.
      new: beginnings of paths that the command may create.
      stdin: text on standard input.
    """

    name: str
    argv: tuple[str, ...]
    words: tuple[str, ...] = ()
    files: Files = dataclasses.field(default_factory=dict)
    code: int = 2
    new: tuple[str, ...] = ()
    stdin: str = ""

    def fill(self, here: pathlib.Path, model: pathlib.Path) -> None:
        """Writes the files of the case."""
        for name, content in self.files.items():
            path = here / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(content, "utf-8")
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                content(path, model)


def folder(path: pathlib.Path, model: pathlib.Path) -> None:
    """Makes an empty folder."""
    path.mkdir()


def copy_model(path: pathlib.Path, model: pathlib.Path) -> None:
    """Makes a copy of the sound model."""
    shutil.copytree(model, path)


def with_config(**changes: Any) -> Make:
    """A model whose config.json has other values; `...` takes a key away."""

    def make(path: pathlib.Path, model: pathlib.Path) -> None:
        copy_model(path, model)
        file = path / "config.json"
        values = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))

    return make


def with_file(name: str, content: str | bytes | Callable[[bytes], bytes] | None) -> Make:
    """A model with another content of one file, a function of its bytes, or without it (None)."""

    def make(path: pathlib.Path, model: pathlib.Path) -> None:
        copy_model(path, model)
        file = path / name
        if content is None:
            file.unlink()
        elif callable(content):
            file.write_bytes(content(file.read_bytes()))
        else:
            file.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def with_tokenizer_entry(**changes: Any) -> Make:
    """A model whose tokenizer_config.json has other values."""

    def change(content: bytes) -> bytes:
        return json.dumps({**json.loads(content), **changes}).encode()

    return with_file("tokenizer_config.json", change)


def lines(*rows: Any) -> str:
    """Rows as JSONL."""
    return "".join(json.dumps(row) + "\n" for row in rows)
