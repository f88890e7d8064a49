"""Bad inputs of `python -m r1jax.convert`."""

from typing import Any

from tests.inputs.case import NONE, Case, Files, copy_model, folder
from tests.inputs.model_folders import FOLDERS


def case(name: str, *argv: str, words: tuple[str, ...] = (), files: Files = NONE, **options: Any) -> Case:
    return Case(name, argv, words, files, **options)


ARGUMENTS = [
    case("no argument", words=("SRC", "DST")),
    case("one argument", "{model}", words=("SRC", "DST")),
    case("three arguments", "{model}", "{here}/a", "{here}/b", words=("SRC", "DST")),
    case("unknown flag", "{model}", "{here}/a", "--dtyp=float32", words=("dtyp",)),
    case("dtype int8", "{model}", "{here}/a", "--dtype=int8", words=("dtype", "int8")),
    case("dtype empty", "{model}", "{here}/a", "--dtype=", words=("dtype",)),
    case("adapter of a model", "{model}", "{here}/a", "--adapter", words=("--adapter",)),
    case("adapter with dtype", "{model}", "{here}/a", "--adapter", "--dtype=float32", words=("--adapter",)),
    case("adapter with a value", "{model}", "{here}/a", "--adapter=perhaps", words=("adapter",)),
    case("source missing", "{here}/none", "{here}/a", words=("none",)),
    case("source a hub name offline", "org/nothing-of-that-name", "{here}/a", words=("org/nothing-of-that-name",)),
    case("source a text file", "{here}/notes.txt", "{here}/a", words=("notes.txt",), files={"notes.txt": "notes"}),
    case("source empty text", "", "{here}/a", words=("SRC", "empty")),
    case("target empty text", "{model}", "", words=("DST",)),
    case("target exists", "{model}", "{here}/a", words=("exists", "new folder"), files={"a/notes.txt": "my notes"}),
    case("target is a file", "{model}", "{here}/a", words=("exists",), files={"a": "my notes"}),
    case("target is the source", "{here}/m", "{here}/m", words=("exists",), files={"m": copy_model}),
    case("target below a file", "{model}", "{here}/a/b", words=("a/b",), files={"a": "my notes"}),
    case("target in /proc", "{model}", "/proc/none/a", words=("/proc/none",)),
    case("target of 300 characters", "{model}", "{here}/" + "x" * 300, words=("x" * 20,)),
    case("target with zero byte", "{model}", "{here}/a\0b", words=("DST",)),
    case(
        "target whose draft has a stranger's files",
        "{model}",
        "{here}/a",
        words=(".a.partial",),
        files={".a.partial/notes.txt": "my notes"},
    ),
    case("run without checkpoint", "{here}/run", "{here}/a", words=("checkpoint",), files={"run/checkpoints": folder}),
    case("checkpoint empty", "{here}/run/checkpoints/3", "{here}/a", words=("3",), files={"run/checkpoints/3": folder}),
    case("gguf empty", "{here}/m.gguf", "{here}/a", words=("m.gguf",), files={"m.gguf": ""}),
    case(
        "gguf of noise",
        "{here}/m.gguf",
        "{here}/a",
        words=("m.gguf",),
        files={"m.gguf": b"GGUF" + bytes(range(256)) * 9},
    ),
]
MODELS = [
    case(f"model: {name}", "{here}/m", "{here}/a", words=words, files={"m": make})
    for name, (make, words) in FOLDERS.items()
]
FINE = [
    case("fine: plain", "{model}", "{here}/a", code=0, new=("a",)),
    case("fine: an empty target", "{model}", "{here}/a", code=0, new=("a",), files={"a": folder}),
    case("fine: into new folders", "{model}", "{here}/x/ü y", code=0, new=("x",)),
]

CASES = [*ARGUMENTS, *MODELS, *FINE]
