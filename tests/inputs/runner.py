"""Runs bad inputs in one warm process for each command, and judges their answers.

  python -m tests.inputs.runner [COMMAND …]       a table on the console; exit code 1 if an answer is wrong
  python -m tests.inputs.runner --answers COMMAND   the answers as JSON lines (what the first form starts)

A warm process saves the import of jax for each case. A case that hangs is ended with its process, and the rest goes on
in a new one.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import pathlib
import queue
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from tests.environment import ROOT, make_xla_flags, set_environment
from tests.inputs.case import Case

COMMANDS = ("train", "generate", "evaluate", "convert", "compile_check", "plan", "doctor", "report", "chat")
SECONDS = 75.0
START_SECONDS = 60.0  # for a process to start
MEMORY = 24 * 2**30  # bytes of address space
GROWTH = 2 * 2**30  # bytes that the largest resident size may grow by in one case


@dataclasses.dataclass
class Answer:
    """What a command did with a case: exit code (-1: a traceback, -2: none in time), stderr, what became of files."""

    command: str
    name: str
    code: int
    stderr: str
    seconds: float = 0.0
    growth: int = 0
    lost: list[str] = dataclasses.field(default_factory=list)
    new: list[str] = dataclasses.field(default_factory=list)


def list_cases(command: str) -> list[Case]:
    """The cases of a command."""
    return list(importlib.import_module(f"tests.inputs.{command}_cases").CASES)


def find_faults(case: Case, answer: Answer) -> list[str]:
    """What is wrong with an answer; [] if it is as it should be."""
    faults = []
    said = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    if answer.code != case.code:
        faults.append(f"exit code {answer.code}, not {case.code}")
    if "Traceback" in answer.stderr:
        faults.append("a traceback")
    if case.code == 2 and len(said) != 1:
        faults.append(f"{len(said)} lines of error")
    if said and not answer.stderr.rstrip("\n").endswith(said[-1]):
        faults.append("lines after the error")
    if said and len(said[-1]) > 900:
        faults.append(f"an error of {len(said[-1])} characters")
    faults += [f"{word!r} is not said" for word in case.words if word not in (said[-1] if said else answer.stderr)]
    faults += [f"lost or changed: {name}" for name in answer.lost]
    faults += [f"left behind: {name}" for name in answer.new if not name.startswith(case.new or ("\0",))]
    if answer.seconds > SECONDS:
        faults.append(f"{answer.seconds:.0f} s")
    if answer.growth > GROWTH:
        faults.append(f"{answer.growth / 2**30:.1f} GiB")
    return faults


def run_case(command: str, case: Case, model: pathlib.Path, here: pathlib.Path) -> Answer:
    """Runs one case in this process, in the empty folder `here`."""
    case.fill(here, model)
    before = read_tree(here)
    main = importlib.import_module(f"r1jax.{command}").main
    places = {"{here}": str(here), "{model}": str(model), "{root}": str(ROOT)}
    argv = [command, *case.argv]
    for place, text in places.items():
        argv = [argument.replace(place, text) for argument in argv]
    peak, begin = _find_peak(), time.monotonic()
    with _captured(case.stdin) as log, contextlib.chdir(here):
        try:
            code = main(argv)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = -1
    seconds = time.monotonic() - begin
    after = read_tree(here)
    new = [name for name in after if name not in before]
    aside = [name for name in new if ".old-" in name]
    lost = [
        name
        for name, content in before.items()
        if after.get(name) != content and not any(after[place] == content for place in aside)
    ]
    return Answer(command, case.name, code, log[0], seconds, _find_peak() - peak, lost, new)


def read_tree(folder: pathlib.Path) -> dict[str, str]:
    """Every path below a folder -> hash of the file's content, or its kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "" if path.is_file() else "special"
        try:
            found[str(path.relative_to(folder))] = kind or hashlib.sha256(path.read_bytes()).hexdigest()
        except PermissionError:
            found[str(path.relative_to(folder))] = "closed"
    return found


def _find_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def _captured(stdin: str) -> Iterator[list[str]]:
    """Collects what is written to stdout and stderr, by Python or below it; one list item when it ends: stderr."""
    found: list[str] = []
    with contextlib.ExitStack() as stack:
        files = {fd: stack.enter_context(tempfile.TemporaryFile()) for fd in (0, 1, 2)}
        files[0].write(stdin.encode())
        files[0].seek(0)
        streams, saved = (sys.stdin, sys.stdout, sys.stderr), {fd: os.dup(fd) for fd in files}
        for fd, file in files.items():
            os.dup2(file.fileno(), fd)
        sys.stdin, sys.stdout, sys.stderr = (
            open(fd, mode, encoding="utf-8", errors="backslashreplace", closefd=False)
            for fd, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        try:
            yield found
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            sys.stdin, sys.stdout, sys.stderr = streams
            for fd, old in saved.items():
                os.dup2(old, fd)
                os.close(old)
            files[2].seek(0)
            found.append(files[2].read().decode("utf-8", "replace"))


def answer_all(command: str, names: Sequence[str] = ()) -> Iterator[tuple[Case, Answer]]:
    """Runs the cases of a command (those with `names`, if given) in processes of their own."""
    left = [case for case in list_cases(command) if not names or case.name in names]
    while left:
        arguments = [sys.executable, "-m", "tests.inputs.runner", "--answers", command, *(case.name for case in left)]
        log = tempfile.TemporaryFile()
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, env=_environment())
        lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=_pump, args=(process, lines), daemon=True).start()
        patience = SECONDS + START_SECONDS
        try:
            while left:
                try:
                    line = lines.get(timeout=patience)
                except queue.Empty:
                    yield left[0], Answer(command, left[0].name, -2, "", SECONDS)
                    left = left[1:]
                    break
                if not line:
                    log.seek(0)
                    yield left[0], Answer(command, left[0].name, -1, log.read().decode("utf-8", "replace"))
                    left = left[1:]
                    break
                answer = Answer(**json.loads(line))
                assert answer.name == left[0].name
                yield left[0], answer
                left, patience = left[1:], SECONDS
        finally:
            process.kill()
            process.wait()


def _pump(process: Any, lines: queue.Queue[bytes]) -> None:
    for line in process.stdout:
        lines.put(line)
    lines.put(b"")


def _environment() -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": make_xla_flags(1), "R1JAX_SILENCE_SECONDS": "0", "HF_HUB_OFFLINE": "1"}


def _answer(command: str, names: Sequence[str]) -> None:
    """The answers of one command as JSON lines on stdout."""
    from tests.tiny_model import write_tiny_model

    os.environ["HF_HUB_OFFLINE"] = "1"
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(prefix="inputs-") as base:
        model = write_tiny_model(pathlib.Path(base) / "model")
        for number, case in enumerate(case for case in list_cases(command) if not names or case.name in names):
            here = pathlib.Path(base) / f"case-{number}"
            here.mkdir()
            print(json.dumps(dataclasses.asdict(run_case(command, case, model, here))), flush=True)


def main(arguments: Sequence[str]) -> int:
    """Runs the cases of the commands (default: all), prints what each answered, and a table."""
    if arguments[:1] == ["--answers"]:
        _answer(arguments[1], arguments[2:])
        return 0
    table, bad = {}, 0
    for command in arguments or COMMANDS:
        counts: collections.Counter[str] = collections.Counter()
        for case, answer in answer_all(command):
            faults = find_faults(case, answer)
            bad += bool(faults)
            counts["as it should be" if not faults else "wrong"] += 1
            counts[f"code {answer.code}"] += 1
            last = (answer.stderr.strip().splitlines() or [""])[-1]
            print(f"{command} | {case.name} | {answer.code} | {answer.seconds:.1f} s | {last[:400]}", flush=True)
            for fault in faults:
                print(f"    WRONG: {fault}", flush=True)
        table[command] = dict(counts)
    for command, counts in table.items():
        print(command, counts)
    return int(bool(bad))


if __name__ == "__main__":
    set_environment()
    os.environ["XLA_FLAGS"] = make_xla_flags(1)
    sys.exit(main(sys.argv[1:]))
