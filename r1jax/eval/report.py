"""Report page of one run, or of several side by side: one self-contained HTML file that works offline.

Python selects the content (headlines, charts, samples, config) and writes it as escaped HTML and one JSON block; a
small script of the page draws the curves and pages through the samples. Text written by a model is untrusted: it enters
the page only inside that JSON, with `<`, `>` and `&` escaped, the script inserts it as text nodes, and the page's
content security policy allows no other script and no network.

A page written with `refresh` reloads itself, for a run that goes on; who writes it anew is the caller's matter.
"""

import base64
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import r1jax
from r1jax.core.atomic_file import find_full_disk, replace_file
from r1jax.core.errors import UserError
from r1jax.core.outputs.ownership import check_output, set_aside, shorten
from r1jax.core.sections import flatten
from r1jax.eval.charts import Section, plan_charts, plan_comparison
from r1jax.eval.collected_set import describe_set
from r1jax.eval.headline import Headline, find_headlines, format_change, format_value
from r1jax.eval.record import SAMPLE_LIMIT, RecordedRun, Samples, choose_samples, read_run
from r1jax.eval.time_split import read_split

REPORT_FILE = "report.html"
COMPARISON_FILE = "comparison.html"
COLORS = 8  # number of run and line colours in page.css
POINT_LIMIT = 1500  # points of one curve on a page
GENERATOR, SUBJECT = '<meta name="generator" content="r1jax ', '<meta name="subject" content="'
SCRIPTS = ("shapes.js", "charts.js", "samples.js", "page.js")


def write_report(workdir: str | Path, output: str | Path | None = None, *, refresh: int = 0) -> Path:
    """Writes the page of one run, by default to `workdir/report.html`, and returns its path.

    Raises:
      UserError: if the folder has no metrics, or a file is malformed.
    """
    if output is None:
        return _write_runs([workdir], Path(workdir) / REPORT_FILE, refresh=refresh)
    return write_comparison([workdir], output, refresh=refresh)


def write_comparison(workdirs: Sequence[str | Path], output: str | Path, *, refresh: int = 0) -> Path:
    """Writes one page of one or several runs to `output`, atomically, and returns its path.

    refresh: seconds after which the page reloads itself; 0: never.

    Raises:
      UserError: if a folder has no metrics, a file is malformed, or `output` cannot be written.
    """
    check_page(Path(output))
    return _write_runs(workdirs, Path(output), refresh=refresh)


def _write_runs(workdirs: Sequence[str | Path], output: Path, *, refresh: int) -> Path:
    runs = [read_run(workdir) for workdir in workdirs]
    samples = [choose_samples(workdir, SAMPLE_LIMIT // len(runs)) for workdir in workdirs]
    return write_page(output, render_page(runs, samples, subject=name_subject(workdirs), refresh=refresh))


def name_subject(places: Sequence[str | Path]) -> str:
    """Short digest of the folders or files that a page is about, by which a page is known again."""
    return hashlib.sha256("\n".join(str(Path(place).resolve()) for place in places).encode()).hexdigest()[:16]


def check_page(output: Path) -> None:
    """Raises UserError if a page cannot be written to `output`, or if a file there is no page of ours."""
    if not output.parent.is_dir():
        raise UserError(f"The report cannot be written to {shorten(output)}: there is no such folder (--output)")
    check_output(output, lambda path: GENERATOR in _read_head(path))


def write_page(output: Path, page: str) -> Path:
    """Writes a page atomically and returns its path; a page of another subject in its place is set aside, and so is any
    other file. Raises UserError if it cannot be written, and OSError on a full disk.
    """
    try:
        there, subject = _read_head(output), _find_subject(page)
        if output.exists() and (GENERATOR not in there or _find_subject(there) not in ("", subject)):
            set_aside([output])
        replace_file(output, [page.encode("utf-8", "backslashreplace")])  # half a surrogate pair has no UTF-8
    except OSError as error:
        if find_full_disk(error):
            raise
        raise UserError(f"The report cannot be written to {shorten(output)}: {error.strerror}.") from error
    return output


def _find_subject(page: str) -> str:
    return page.partition(SUBJECT)[2].partition('"')[0]


def _read_head(page: Path) -> str:
    try:
        with open(page, encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except OSError:
        return ""


def render_page(
    runs: Sequence[RecordedRun],
    samples: Sequence[Samples],
    *,
    labels: Sequence[str] | None = None,
    title: str = "",
    story: Markup | None = None,
    style: str = "",
    subject: str = "",
    refresh: int = 0,
) -> str:
    """HTML of the page of these runs and their selected samples.

    labels, title: names of the runs and the page (default: from their folders). story: HTML placed above the curves,
    with its own `style`. subject: of `name_subject`. refresh: seconds after which the page reloads itself; 0: never.
    """
    labels = labels if labels is not None else _distinguish([run.workdir.resolve() for run in runs])
    script = "\n".join(read_part(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = [run.names() for run in runs]
    sections = plan_charts(names[0]) if len(runs) == 1 else plan_comparison(names, labels)
    return _template().render(
        title=title or " · ".join(labels),
        heading=title or (labels[0] if len(runs) == 1 else f"{len(runs)} runs compared"),
        story=story,
        version=r1jax.__version__,
        subject=subject,
        refresh=refresh,
        style=Markup(read_part("page.css") + style),
        script=Markup(script),
        digest=digest,
        runs=[
            {"label": label, "color": number % COLORS, "facts": _facts(run)}
            for number, (label, run) in enumerate(zip(labels, runs, strict=True))
        ],
        collected=describe_set(runs[0].workdir) if len(runs) == 1 else None,
        splits=[
            {"label": label, **split}
            for label, run in zip(labels, runs, strict=True)
            if (split := read_split(run.workdir, run.rows))
        ],
        gains=_group_gains(labels, runs),
        sections=sections,
        config=_tabulate_configs([run.config for run in runs]),
        notes=[_describe_choice(sample) for sample in samples],
        data=Markup(_embed(_payload(labels, runs, samples, sections))),
    )


def find_default_output(workdirs: Sequence[str | Path]) -> Path:
    """Where a comparison goes: the folder that holds the runs (`runs/`), or the current one if they share none."""
    parents = {Path(workdir).parent for workdir in workdirs}
    return (parents.pop() if len(parents) == 1 else Path()) / COMPARISON_FILE


def _payload(
    labels: Sequence[str], runs: Sequence[RecordedRun], samples: Sequence[Samples], sections: Sequence[Section]
) -> Any:
    """Data for the page's script."""
    return {
        "runs": [
            {"label": label, "judges": _find_judges(run), **_pack_series(run)}
            for label, run in zip(labels, runs, strict=True)
        ],
        "sections": [asdict(section) for section in sections],
        "samples": [{**row, "run": number} for number, chosen in enumerate(samples) for row in chosen.rows],
    }


def _find_judges(run: RecordedRun) -> list[str]:
    """The rewards that say whether a sample's answer is right: the strict ones of its evaluation but the format's."""
    measured = run.config.get("eval")
    strict = measured.get("strict", ()) if isinstance(measured, Mapping) else ()
    form = measured.get("format", "") if isinstance(measured, Mapping) else ""
    return [name for name in strict if name != form] or ["answer_reward", "accuracy_reward", "number_reward"]


def _pack_series(run: RecordedRun) -> dict[str, Any]:
    """Curve of every metric, and the number of steps averaged per point of the longest, which the page must state."""
    series = {name: run.series(name) for name in run.names()}
    longest = max(map(len, series.values()), default=0)
    return {"series": {name: _thin(points) for name, points in series.items()}, "stride": _stride(longest)}


def _stride(length: int) -> int:
    return max(1, -(-length // POINT_LIMIT))


def _thin(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Steps and values, to nine digits; very long runs are averaged in blocks, at the last step of each."""
    width = _stride(len(points))
    blocks = [points[start : start + width] for start in range(0, len(points), width)]
    means = [sum(value for _, value in block) / len(block) for block in blocks]
    return [block[-1][0] for block in blocks], [float(f"{mean:.9g}") for mean in means]


def _embed(data: Any) -> str:
    """JSON that is inert inside an HTML script element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _group_gains(labels: Sequence[str], runs: Sequence[RecordedRun]) -> list[dict[str, Any]]:
    """Headlines grouped into table rows: the measures of one subject, or the runs of one measure."""
    alone = len(runs) == 1
    groups: dict[str, list[dict[str, Any]]] = {}
    for number, (label, run) in enumerate(zip(labels, runs, strict=True)):
        for headline in find_headlines(run.rows):
            subject = f"Held-out: {headline.subject}" if headline.is_rate else headline.subject.capitalize()
            title = subject if alone else f"{subject} · {headline.measure}"
            row = {"label": headline.measure if alone else label, "color": None if alone else number % COLORS}
            groups.setdefault(title, []).append({**row, "headline": headline})
    return [{"title": title, "span": _describe_span(rows), "rows": rows} for title, rows in groups.items()]


def _describe_span(rows: Sequence[Mapping[str, Any]]) -> str:
    """The steps between which the headlines of a group lie, if all agree."""
    spans = {(row["headline"].before_step, row["headline"].after_step) for row in rows}
    before, after = spans.pop()
    if spans or before is None:
        return ""
    stderr = ", ± one standard error" if any(row["headline"].after_stderr is not None for row in rows) else ""
    return f"step {before:,} → step {after:,}{stderr}"


def _facts(run: RecordedRun) -> list[tuple[str, str]]:
    """The main facts of a run as short labels and values; facts that the config lacks are omitted."""
    steps = [row["step"] for row in run.rows]
    seconds = sum(value for _, value in run.series("step_time"))
    facts = {
        "stage": run.config.get("stage"),
        "model": _look_up(run.config, "model", "model.name", "model.preset", "student.name", "model.family"),
        "teacher": _look_up(run.config, "teacher.name"),
        "task": _look_up(run.config, "task", "data.task", "data.name", "data.source", "data.path"),
        "seed": run.config.get("seed"),
        "steps": f"{max(steps):,}" if steps else "none yet",
        "time in steps": _format_duration(seconds) if seconds else None,
        "written": f"{run.written:%Y-%m-%d %H:%M} UTC",
    }
    return [(name, str(value)) for name, value in facts.items() if value is not None]


def _look_up(config: Mapping[str, Any], *paths: str) -> str | None:
    """The first of some dotted keys whose value is a text."""
    for path in paths:
        value: Any = config
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str) and value:
            return value
    return None


def _format_duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _describe_choice(samples: Samples) -> str:
    if not samples.total:
        return "none written"
    if len(samples.rows) == samples.total:
        return f"all {samples.total:,} samples"
    return (
        f"{len(samples.rows):,} of {samples.total:,} samples, from {samples.steps_shown:,} of {samples.steps:,} steps, "
        "evenly spaced, first and last included; all samples are in samples.jsonl"
    )


def _tabulate_configs(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per key: its dotted name, its value in each run as JSON, and whether the runs agree."""
    show = lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    flat = [{key: show(value) for key, value in flatten(config).items()} for config in configs]
    keys = dict.fromkeys(key for config in flat for key in config)
    values = {key: [config.get(key, "") for config in flat] for key in keys}
    return [{"key": key, "values": cells, "same": len(set(cells)) == 1} for key, cells in values.items()]


def _distinguish(paths: Sequence[Path]) -> list[str]:
    """The shortest path suffixes that differ from one another; equal paths get a number."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        labels = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{path.name} ({number})" for number, path in enumerate(paths, start=1)]


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["value"] = format_value
    environment.filters["change"] = format_change
    environment.filters["track"] = _track
    environment.filters["slug"] = lambda text: text.lower().replace(" ", "-")
    return environment.from_string(read_part("page.html"))


def _track(headline: Headline) -> dict[str, str]:
    """Positions of a headline's marks on a track from 0 to 100 %, as CSS lengths."""
    before = headline.after if headline.before is None else headline.before
    spread = [(before, headline.before_stderr or 0.0), (headline.after, headline.after_stderr or 0.0)]
    marks = {"before": before, "after": headline.after, "low": min(before, headline.after)}
    marks["width"] = abs(headline.after - before)
    for name, (value, stderr) in zip(("before", "after"), spread, strict=True):
        low, high = max(0.0, value - stderr), min(1.0, value + stderr)
        marks |= {f"{name}_low": low, f"{name}_width": high - low}
    return {name: f"{100 * value:.2f}%" for name, value in marks.items()}


@functools.cache
def read_part(name: str) -> str:
    """A part of the page, by its file name."""
    return (resources.files("r1jax.eval") / "page" / name).read_text(encoding="utf-8")
