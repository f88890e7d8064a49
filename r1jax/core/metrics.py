"""Metrics and samples of a run on disk: `metrics.jsonl` and `samples.jsonl`, mirrored to TensorBoard and to trackers
(core/sinks/).

The two JSONL files are the record, one object per step (or sample) with `step` first; the others are views of them. A
row is appended whole and flushed, so a killed run loses at most the line it was writing, and that torn line is dropped
when the file is opened again. `rewind` makes the record agree with a restored checkpoint, so that an interrupted run
ends with the same files as an uninterrupted one.

Left out: averaging over devices or micro-batches; values arrive ready to write.
"""

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r1jax.core.atomic_file import replace_file
from r1jax.core.errors import UserError
from r1jax.core.sinks.event_files import EventFiles
from r1jax.core.sinks.sink import Sink
from r1jax.core.sinks.trackers import check_tracker, open_tracker

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
TENSORBOARD_FOLDER = "tensorboard"

_log = logging.getLogger(__name__)

Row = dict[str, Any]  # one line of a JSONL file


class MetricsWriter:
    """Appends metrics and samples of one run to its workdir.

    Only the `active` process writes; in the others every method does nothing. Usage after a resume: construct,
    `rewind(step of the checkpoint)`, continue writing. A fresh start in a workdir that may contain rows of a run that
    died before its first checkpoint calls `rewind(-1)`.

    Args:
      workdir: folder of the run, created if missing.
      active: whether this process writes; one process of a run does.
      tensorboard: also write event files to `workdir/tensorboard`.
      trackers: options by the tracker's package, such as `wandb={"project": "r1"}`, or None for none of it. A run that
        is resumed goes on as the same run there, and keeps the rows that the tracker already has.

    Raises UserError for a package that is missing, before anything is written.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        active: bool = True,
        tensorboard: bool = True,
        **trackers: Mapping[str, Any] | None,
    ):
        self._workdir = Path(workdir)
        self._active = active
        self._files: dict[str, int] = {}  # open files by name
        self._sinks: list[Sink] = []
        self._last_step: int | None = None
        self._warned: set[str] = set()
        given = {name: options for name, options in trackers.items() if options is not None} if active else {}
        for name in given:
            check_tracker(name, f"config.log.{name}_project")
        if tensorboard:
            self._sinks.append(EventFiles(self._workdir / TENSORBOARD_FOLDER))
        self._sinks += [open_tracker(name, self._workdir, options) for name, options in given.items()]
        if active:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._mend()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends the one row of `step`: numbers (or 0-d arrays) by name.

        NaN and infinities become null, with a warning the first time for each metric.

        Raises:
          ValueError: if `step` is not greater than the last one on file: a step's row is written once, whole.
        """
        if not self._active:
            return
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(
                f"{METRICS_FILE} already holds step {self._last_step}, so step {step} needs rewind({step - 1}) first."
            )
        numbers = {name: self._finite(step, name, _number(value)) for name, value in metrics.items()}
        self._append(METRICS_FILE, [{"step": int(step), **numbers}])
        self._last_step = int(step)
        present = {name: number for name, number in numbers.items() if number is not None}
        for sink in self._sinks:
            sink.write(int(step), present)

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Appends samples of `step`, in order.

        The report reads `prompt` (text or messages), `completion`, `reward`, `rewards` by name (null where one does not
        apply), `advantage`, `length` in tokens and `finish_reason`; other fields are kept and shown too.
        """
        if self._active:
            self._append(
                SAMPLES_FILE,
                [{"step": int(step), **{key: _plain(value) for key, value in row.items()}} for row in samples],
            )

    def rewind(self, step: int) -> None:
        """Drops all rows with a step above `step` from both files, each atomically: after a kill a file is old
        or new.
        """
        if not self._active:
            return
        self.close()
        last = -1 if self._last_step is None else self._last_step
        for name in (METRICS_FILE, SAMPLES_FILE):
            _filter_rows(self._workdir / name, lambda row: row["step"] <= step)
        self._mend()
        for sink in self._sinks:
            sink.rewind(step, last)

    def sync(self) -> dict[str, int]:
        """Puts all rows on disk, so that a power cut after a checkpoint loses none before it; the size of each file in
        bytes.
        """
        if not self._active:
            return {}
        for file in self._files.values():
            os.fsync(file)
        return self.measure()

    def measure(self) -> dict[str, int]:
        """Bytes of each file that exists."""
        paths = [self._workdir / name for name in (METRICS_FILE, SAMPLES_FILE)]
        return {path.name: path.stat().st_size for path in paths if path.is_file()}

    def close(self) -> None:
        """Flushes and closes all files. Writing reopens them."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()
        for sink in self._sinks:
            sink.close()

    def _mend(self) -> None:
        """Cuts torn last lines off both files and finds the last step."""
        for name in (METRICS_FILE, SAMPLES_FILE):
            _cut_torn_line(self._workdir / name)
        steps = [row["step"] for row in read_rows(self._workdir / METRICS_FILE)]
        self._last_step = max(steps) if steps else None

    def _append(self, name: str, rows: Sequence[Row]) -> None:
        """Appends all rows or, with OSError, none."""
        path = self._workdir / name
        if name not in self._files:
            self._files[name] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        file, size = self._files[name], os.fstat(self._files[name]).st_size
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        # A lone surrogate in a model's text is not valid UTF-8, but valid JSON as \udc80.
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        try:
            while data:
                data = data[os.write(file, data) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(file, size)
            raise OSError(error.errno, error.strerror, str(path)) from error

    def _finite(self, step: int, name: str, number: int | float) -> int | float | None:
        if math.isfinite(number):
            return number
        if name not in self._warned:
            self._warned.add(name)
            _log.warning("step %d: %s is %s; written as null (logged once per metric)", step, name, number)
        return None


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """All rows of a JSONL file of a run, [] if it does not exist. A torn last line is left out.

    Raises:
      UserError: naming file and line, if another line is not a JSON object.
    """
    return [row for _, row in iterate_rows(path)]


def iterate_rows(path: str | os.PathLike[str]) -> Iterator[tuple[bytes, Row]]:
    """The rows of a JSONL file one at a time, each with its line. Same rules as `read_rows`."""
    if not Path(path).exists():
        return
    if not Path(path).is_file():
        raise UserError(f"{path} is not a file; move it away or name another folder.")
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            row = _parse(line)
            if row is not None:
                yield line, row
            elif line.endswith(b"\n"):
                raise UserError(f"{path}:{number}: a line must be one JSON object with a step, got {line[:60]!r}.")


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _cut_torn_line(path: Path) -> None:
    """Makes a file end with a whole line, so that the next row is not appended to a partial one."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, "rb+") as file:
        start = _start_of_last_line(file)
        file.seek(start)
        line = file.read()
        if not line.endswith(b"\n"):
            file.seek(start)
            file.truncate()
            if _parse(line) is not None:
                file.write(line + b"\n")


def _start_of_last_line(file: Any, block: int = 1 << 16) -> int:
    end: int = file.seek(0, os.SEEK_END) - 1  # the last byte may be the newline of the last line itself
    while end > 0:
        begin = max(0, end - block)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + int(found) + 1
        end = begin
    return 0


def _filter_rows(path: Path, keep: Callable[[Row], bool]) -> None:
    """Rewrites a file with the rows to keep, byte for byte, in one atomic move."""
    if not path.exists():
        return
    replace_file(path, (line.rstrip(b"\n") + b"\n" for line, row in iterate_rows(path) if keep(row)))


def _number(value: Any) -> int | float:
    """A Python number from a number or a 0-d array of any library."""
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, int) else float(value)


def _plain(value: Any) -> Any:
    """Nested containers and arrays as JSON data; non-finite numbers become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
