"""Console output of a run: a progress bar with the time left, samples with their rewards, tables, log lines.

On a terminal the bar stays at the bottom and everything else scrolls above it. Otherwise (a CI log, a file) the same
facts are plain lines. Texts written by a model are never read as markup and lose their control characters, because an
escape sequence in a completion could control the reader's terminal.
"""

import functools
import io
import logging
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar

from absl import logging as absl_logging
from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from r1jax.core.atomic_file import find_full_disk
from r1jax.core.startup import voice

PHASES = ("rollout", "reward", "train")
TEXT_LIMIT = 360  # characters of a prompt or completion in a table of samples


_shows = True  # whether this process shows what its run shows; see name_process


@functools.cache
def shared_console() -> Console:
    """The one console of the process, on the current stdout; all output goes through it."""
    if not _shows:
        return silence()
    # A character that the terminal cannot encode must not end a run.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False)


def silence() -> Console:
    """A console that shows nothing: that of all processes of a run but the first."""
    return Console(quiet=True, force_terminal=False)


def set_up_logging(level: str = "INFO") -> None:
    """Sends log records to stderr as short lines, or above the progress bar if there is one.

    Shows our records from `level` on, those of libraries from WARNING on. The root logger gets exactly one handler,
    however often this is called and whatever absl has installed, so no line appears twice.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        # `logging.basicConfig`, which a library may have called, installs a plain stream handler.
        if isinstance(handler, _ConsoleHandler | absl_logging.ABSLHandler) or type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    root.addHandler(_ConsoleHandler())
    root.setLevel(logging.WARNING)
    logging.getLogger("r1jax").setLevel(level)


def name_process(name: str, *, shows: bool) -> None:
    """Puts the name of this process of a run of several into its log lines (after `set_up_logging`).

    shows: whether it is the one that shows progress, tables and samples; the others are silent but for warnings.
    """
    global _shows
    _shows = shows
    shared_console.cache_clear()
    if not shows:
        voice.mute()
        logging.getLogger("r1jax").setLevel("WARNING")
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _ConsoleHandler):
            handler.name_process(name)


class _ConsoleHandler(logging.Handler):
    """Prints through the shared console while it controls the terminal, else to stderr."""

    def __init__(self) -> None:
        super().__init__()
        self.name_process("")

    def name_process(self, name: str) -> None:
        """Puts a name before the messages."""
        before = f"[{name}] ".replace("%", "%%") if name else ""
        self.setFormatter(logging.Formatter(f"%(asctime)s {before}%(message)s", datefmt="%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] and find_full_disk(record.exc_info[1]):
            return  # a library's traceback, one a thread of it; the command says it in one line (core/commands.py)
        voice.spoke()
        line = self.format(record)
        if record.levelno >= logging.WARNING:
            line = f"{line[:9]}{record.levelname.lower()}: {line[9:]}"
        if shared_console().is_terminal and sys.stderr.isatty():
            _print(shared_console(), line)
        else:
            print(line, file=sys.stderr, flush=True)


class Progress:
    """A bar over the steps of a run with elapsed time, time left and the main figures of the last rows.

    with Progress(total=30, start=12, title="grpo") as progress:
        progress.update(13, metrics)

    Inside another one (a held-out evaluation during a run) its bar is a line below the other's.

    Args:
      total: the last step of the run.
      start: the first step; steps before a resume do not count towards the speed.
      title: word before the bar.
      every: least number of seconds between the plain lines where there is no terminal; the last step has its own.
      name_count: text of a step, where steps are another amount (bytes).
      console: where to print; the shared console by default.
      clock: seconds, for tests.
    """

    _shown: ClassVar[list["Progress"]] = []  # from the outermost to the innermost

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        title: str = "step",
        every: float = 0.0,
        name_count: Callable[[int], str] = str,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._start, self._step, self._title = total, start, start, title
        self._every, self._name_count = every, name_count
        self._console = console or shared_console()
        self._clock = clock
        self._begin = clock()
        self._first_done: tuple[int, float] | None = None
        self._last_done = self._begin
        self._printed = self._begin
        self._figures: dict[str, str] = {}
        # Two refreshes per second suffice, and drawing competes with training for the cores.
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=2)

    def __enter__(self) -> "Progress":
        self._begin = self._last_done = self._printed = self._clock()
        if self._console.is_terminal and not self._shown:
            self._live.start()
        self._shown.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shown.remove(self)
        self._live.stop()

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Marks `step` as done and shows the main figures of its metrics; held-out figures stay until the next
        evaluation.
        """
        now = self._clock()
        if step > self._start:
            self._first_done = self._first_done or (step, now)
            self._last_done = now
        self._step = step
        figures = name_figures(metrics)
        self._figures = {name: value for name, value in self._figures.items() if "/" in name} | figures
        if self._console.is_terminal:
            self._shown[0]._live.refresh()
        elif now - self._printed >= self._every or step >= self._total:
            self._printed = now
            words = [self._title_count(), *(f"{name} {value}" for name, value in figures.items())]
            _print(self._console, "  ".join([*words, self._times()]))

    def count(self, *_: object) -> None:
        """Marks one more step as done, whatever the arguments: a callback."""
        self.update(self._step + 1, {})

    def seconds_left(self) -> float | None:
        """Estimate from the steps after the first, which includes compilation; None until two are done."""
        if self._first_done is None or self._step <= self._first_done[0]:
            return None
        step, moment = self._first_done
        pace = (self._last_done - moment) / (self._step - step)
        return max(0.0, pace * (self._total - self._step) - (self._clock() - self._last_done))

    def _title_count(self) -> str:
        return f"{self._title} {self._name_count(self._step)}/{self._name_count(self._total)}"

    def _times(self) -> str:
        left = self.seconds_left()
        elapsed = f"elapsed {format_time(self._clock() - self._begin)}"
        # A step that takes longer than the others (it ends with an evaluation) has used up its estimate.
        return elapsed if not left or self._step >= self._total else f"{elapsed}  left {format_time(left)}"

    def _draw(self) -> Table:
        voice.spoke()
        whole = Table.grid()
        for progress in self._shown:
            whole.add_row(progress._draw_bar())
        if figures := self._figures:
            whole.add_row(Text("  ").join(Text.assemble((name, "dim"), " ", value) for name, value in figures.items()))
        if now := voice.describe_activity():
            whole.add_row(Text(_clean(now), style="dim", no_wrap=True, overflow="ellipsis"))
        return whole

    def _draw_bar(self) -> Table:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(self._title_count(), style="bold"),
            ProgressBar(total=max(1, self._total), completed=self._step, width=28),
            Text(self._times(), style="cyan"),
        )
        return bar


def name_figures(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The main figures of a metrics row as short names and formatted numbers, in display order."""
    given = {key: value for key, value in metrics.items() if value is not None}
    figures: dict[str, str] = {}
    for key in ("reward", "loss"):
        if key in given:
            figures[key] = f"{given[key]:.3f}" if key == "reward" else f"{given[key]:.4g}"
    for key in given:
        if key.startswith("rewards/") and key.endswith("/mean") and "format" in key:
            figures["format"] = f"{given[key]:.0%}"
    for key in given:
        parts = key.split("/")
        if parts[0] == "eval" and parts[-1] == "pass@1":
            spread = given.get(f"{key}_stderr")
            figures["/".join(parts[1:])] = f"{given[key]:.1%}" + ("" if spread is None else f" ± {100 * spread:.1f}")
    if not any("/" in name for name in figures):
        for key in given:  # no answers to compare: the run's own rewards on held-out problems
            if key.startswith("eval/") and f"{key}_stderr" in given and not key.endswith("format_rate"):
                figures["/".join(key.split("/")[1:])] = f"{given[key]:.3g} ± {given[f'{key}_stderr']:.2g}"
    if given.get("frac_reward_zero_std") == 1.0:
        figures["update"] = "none: all groups have equal rewards"
    if "rollout/tokens_per_second" in given and "step_time" not in given:
        figures["tokens/s"] = f"{given['rollout/tokens_per_second']:,.0f}"
    shares = {key.removeprefix("collection/"): given[key] for key in given if key.startswith("collection/")}
    if "kept" in shares:
        dropped = [f"{name.replace('_', ' ')} {value:.1%}" for name, value in shares.items() if name != "kept"]
        figures |= {"kept": f"{shares['kept']:.1%}", **({"dropped": ", ".join(dropped)} if dropped else {})}
    if "step_time" in given:
        phases = [f"{name} {given[f'time/{name}']:.1f}" for name in PHASES if f"time/{name}" in given]
        figures["s/step"] = f"{given['step_time']:.1f}" + (f" ({', '.join(phases)})" if phases else "")
    return figures


def show_samples(
    rows: Sequence[Mapping[str, Any]],
    *,
    limit: int = 4,
    title: str = "samples",
    console: Console | None = None,
) -> None:
    """Prints a few samples, from the best reward to the worst, evenly spaced when there are more than `limit`.

    Rows have the fields of `MetricsWriter.write_samples`; missing fields are omitted.
    """
    console = console or shared_console()
    ranked = sorted(rows, key=lambda row: -_total_reward(row))
    chosen = [ranked[index] for index in _spread(len(ranked), limit)]
    title = f"{title}: {len(chosen)} of {len(ranked)}, from best to worst reward"
    if console.is_terminal:
        table = Table(title=title, box=box.SIMPLE, show_header=False, title_justify="left", title_style="bold")
        table.add_column()
        table.add_column(overflow="fold")
        for row in chosen:
            texts = [Text(text, style="dim" if name == "prompt" else "") for name, text in _excerpts(row).items()]
            table.add_row(Text("\n".join(_describe_sample(row))), Text("\n").join(texts))
            table.add_section()
        console.print(table)
        return
    _print(console, title)
    for row in chosen:
        _print(console, "  " + "  ".join(_describe_sample(row)))
        for name, text in _excerpts(row).items():
            _print(console, f"    {name}: " + text.replace("\n", "\\n"))


def show_table(title: str, rows: Sequence[Mapping[str, Any]], *, console: Console | None = None) -> None:
    """Prints rows as a table with the keys as header: first column left-aligned, others right-aligned. Prints nothing
    for no rows.
    """
    if not rows:
        return
    console = console or shared_console()
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    if not console.is_terminal:
        _print(console, title)
        for line in _align([names, *cells]):
            _print(console, "  " + line)
        return
    table = Table(title=Text(_clean(title)), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for number, name in enumerate(names):
        table.add_column(Text(_clean(name)), justify="right" if number else "left")
    for values in cells:
        table.add_row(*map(Text, values))
    console.print(table)


def show_piece(text: str, style: str = "", *, console: Console | None = None) -> None:
    """Prints a piece of a text that arrives in pieces, at once and without a line break of its own."""
    (console or shared_console()).print(Text(_clean(text), style=style), end="", soft_wrap=True)


def format_time(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _print(console: Console, text: str) -> None:
    """Prints one line without markup or wrapping."""
    voice.spoke()
    console.print(Text(_clean(text)), soft_wrap=True)


def _clean(text: str) -> str:
    """Removes characters that control a terminal: control and formatting characters (except line breaks and joiners),
    surrogates.
    """
    return "".join("\ufffd" if _drives(letter) else letter for letter in text)


def _drives(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs") and letter not in "\n\u200c\u200d"


def _describe_sample(row: Mapping[str, Any]) -> list[str]:
    words = [f"reward {_total_reward(row):.3g}"] if "reward" in row or "rewards" in row else []
    words += [f"{name} {_cell(value)}" for name, value in row.get("rewards", {}).items()]
    if row.get("advantage") is not None:
        words.append(f"advantage {row['advantage']:+.2f}")
    if row.get("length") is not None:
        words.append(f"{row['length']} tokens")
    if row.get("finish_reason"):
        words.append(f"finish: {row['finish_reason']}")
    return [_clean(word) for word in words]


def _total_reward(row: Mapping[str, Any]) -> float:
    if row.get("reward") is not None:
        return float(row["reward"])
    return sum(float(value) for value in row.get("rewards", {}).values() if value is not None)


def _excerpts(row: Mapping[str, Any]) -> dict[str, str]:
    """The end of the prompt, because its beginning is the same in all; both ends of the completion."""
    excerpts = {}
    for name in ("prompt", "completion"):
        if name in row:
            text = _clean(_join_messages(row[name]).strip())
            if len(text) > TEXT_LIMIT:
                half = TEXT_LIMIT // 2
                text = f"… {text[-half:]}" if name == "prompt" else f"{text[:half]} … {text[-half:]}"
            excerpts[name] = text
    return excerpts


def _join_messages(text: str | Sequence[Mapping[str, str]]) -> str:
    return text if isinstance(text, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in text)


def _spread(count: int, limit: int) -> Iterable[int]:
    """At most `limit` of `count` positions, both ends included."""
    if count <= limit:
        return range(count)
    return sorted({round(number * (count - 1) / max(1, limit - 1)) for number in range(limit)})


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else _clean(str(value))


def _align(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns of equal width, the first left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = []
    for first, *others in lines:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        padded.append("  ".join(cells).rstrip())
    return padded
