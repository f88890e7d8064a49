"""A profile of some steps: a trace that xprof and Perfetto open, and where the time of these steps went.

`config.profile.steps = "10:12"` traces steps 10 and 11 (as a slice: without the last) by jax's profiler into
`WORKDIR/profile/`: `plugins/profile/…/*.xplane.pb` (`xprof --logdir=WORKDIR/profile`) and `perfetto_trace.json.gz`
(ui.perfetto.dev). `split.json` has the seconds of each traced step by program, for the report page: a moment counts for
the programs that run on any device then, in equal shares, or for `host` if none does.

The first process traces itself and its devices. Steps are slower while they are traced, and a trace of a minute has
hundreds of megabytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import pathlib
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax

from r1jax.core.atomic_file import replace_file
from r1jax.core.startup.voice import activity
from r1jax.eval.time_split import FOLDER, HOST, SPLIT_FILE
from r1jax.runs.model_setup import check

log = logging.getLogger(__name__)

STEP = "r1jax step"  # name of a step's mark in the trace


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Steps that are traced.

    Attributes:
      steps: first step and the one after the last: "10:12" traces steps 10 and 11; "" traces none.
    """

    steps: str = ""

    def __post_init__(self) -> None:
        found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", self.steps)
        is_right = not self.steps or (found is not None and 1 <= int(found[1]) < int(found[2]))
        check("profile.steps", self.steps, is_right, 'must be "" or FIRST:END as in "10:12", which is steps 10 and 11')

    @property
    def range(self) -> range:
        """The numbers of the steps."""
        first, _, end = self.steps.partition(":")
        return range(int(first), int(end)) if self.steps else range(0)


class Profiler:
    """Traces the configured steps of a run into its workdir, in the `active` process."""

    def __init__(self, config: ProfileConfig, workdir: pathlib.Path, *, active: bool):
        self.steps = config.range if active else range(0)
        self.folder = workdir / FOLDER
        self._runs = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Context of a step: traced if it is one of the configured ones."""
        if number not in self.steps:
            yield
            return
        if not self._runs:
            self.folder.mkdir(parents=True, exist_ok=True)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # each call of Python would be an event
            jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True, profiler_options=options)
            self._runs = True
        with jax.profiler.StepTraceAnnotation(STEP, step_num=number):
            yield
        if number + 1 not in self.steps:
            self.close()

    def close(self) -> None:
        """Ends the trace, if one runs, and writes the split."""
        if not self._runs:
            return
        self._runs = False
        with activity("writing the profile"):
            jax.profiler.stop_trace()
            newest = max(self.folder.glob("plugins/profile/*/*.xplane.pb"), key=lambda file: file.stat().st_mtime)
            split = split_trace(newest)
        replace_file(self.folder / SPLIT_FILE, json.dumps({"steps": split}, indent=1) + "\n")
        if split:
            parts = split[-1]["parts"]
            shown = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in list(parts.items())[:4])
            log.info("profile of %d steps in %s; step %d: %s", len(split), newest.parent, split[-1]["step"], shown)


class _Span(NamedTuple):
    """A program's, or a step's, time in a trace, in ns."""

    begin: float
    end: float
    name: str


def split_trace(file: pathlib.Path) -> list[dict]:
    """The steps in an xplane file: {"step", "seconds", "parts": {program: seconds}}, the largest part first."""
    with warnings.catch_warnings():  # jax's native types warn when they are made: as an error it would end the process
        warnings.simplefilter("ignore", DeprecationWarning)
        steps, spans = _read_trace(file)
    found = []
    for number, (begin, end) in sorted(steps.items()):
        parts = share_time(begin, end, (span for span in spans if span.end > begin and span.begin < end))
        ordered = dict(sorted(parts.items(), key=lambda item: -item[1]))
        found.append({"step": number, "seconds": (end - begin) / 1e9, "parts": ordered})
    return found


def share_time(begin: float, end: float, spans: Iterable[_Span]) -> dict[str, float]:
    """Seconds of each name between two times in ns: a moment is shared equally by the names of the spans that cover it,
    and is the host's if there is none.
    """
    changes: list[tuple[float, int, str]] = []
    for span in spans:
        changes.append((max(begin, span.begin), 1, span.name))
        changes.append((min(end, span.end), -1, span.name))
    parts, active, now = dict[str, float](), dict[str, int](), begin
    for moment, change, name in [*sorted(changes), (end, 0, "")]:
        if moment > now:
            owners = list(active) or [HOST]
            for owner in owners:
                parts[owner] = parts.get(owner, 0.0) + (moment - now) / 1e9 / len(owners)
            now = moment
        active[name] = active.get(name, 0) + change
        if not active[name]:
            del active[name]
    return parts


def _read_trace(file: pathlib.Path) -> tuple[dict[int, tuple[float, float]], Sequence[_Span]]:
    """The marked steps, and the spans of programs: of modules where a device has a line of them, else of operations."""
    steps: dict[int, tuple[float, float]] = {}
    spans: list[_Span] = []
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        lines = list(plane.lines)
        modules = [line for line in lines if line.name == "XLA Modules"]
        for line in modules or lines:
            for event in line.events:
                begin, end = event.start_ns, event.start_ns + event.duration_ns
                if event.name == STEP:
                    number = dict(event.stats).get("step_num")
                    steps[int(str(number))] = begin, end
                elif modules:
                    spans.append(_Span(begin, end, clean_name(event.name)))
                elif module := next((value for key, value in event.stats if key == "hlo_module"), None):
                    spans.append(_Span(begin, end, clean_name(str(module))))
    return steps, spans


def clean_name(module: str) -> str:
    """The program of a module's name: `jit__accumulate(123)` is accumulate."""
    return re.sub(r"\(\d+\)$|\.\d+$", "", module).removeprefix("jit_").strip("_") or module
