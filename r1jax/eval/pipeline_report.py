"""Report of a pipeline: provenance of its stages, scores of each model, sample replies.

Read from pipeline.json and from the evaluations beside the stages' models. The page's curves are those of the RL
stages, drawn like any comparison of runs, with a link to each stage's own page.

Text written by models enters as autoescaped HTML text, in elements that contain nothing else.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from r1jax.core.errors import UserError
from r1jax.core.metrics import METRICS_FILE
from r1jax.eval.headline import format_value
from r1jax.eval.record import SAMPLE_LIMIT, choose_samples, read_run
from r1jax.eval.report import REPORT_FILE, check_page, name_subject, read_part, render_page, write_page

RECORD_FILE = "pipeline.json"
EVALUATION_FILE = "evaluation.json"
SAMPLES = "evaluation.samples.jsonl"
PROBLEMS = 4  # number of problems whose replies by all models are shown
TEXT_LIMIT = 1200  # characters of one reply
SHARED_LIMIT = 80  # a common beginning of all problems longer than this is left out

_NEEDED = {"name", "folder", "stage", "label", "init", "takes", "status"}  # keys of every entry

Entry = Mapping[str, Any]


def is_pipeline(workdir: str | Path) -> bool:
    """Whether a folder is the workdir of a pipeline."""
    return (Path(workdir) / RECORD_FILE).exists()


def write_story(workdir: str | Path, output: str | Path | None = None, *, refresh: int = 0) -> Path:
    """Writes the report page of a pipeline atomically, by default to `workdir/report.html`, and returns its path.

    refresh: seconds after which the page reloads itself; 0: never.

    Raises UserError for a folder without a readable pipeline.json, or if `output` cannot be written.
    """
    workdir = Path(workdir)
    if output is not None:
        check_page(Path(output))
    output = Path(output or workdir / REPORT_FILE)
    record = read_record(workdir)
    entries = record["stages"]
    reinforced = [e for e in entries if e["stage"] == "grpo" and (workdir / e["folder"] / METRICS_FILE).exists()]
    runs = [read_run(workdir / entry["folder"]) for entry in reinforced]
    samples = [choose_samples(run.workdir, SAMPLE_LIMIT // max(1, len(runs))) for run in runs]
    labels = [entry["label"] or entry["name"] for entry in reinforced]
    page = render_page(
        runs,
        samples,
        labels=labels,
        title=workdir.resolve().name,
        story=render_story(workdir, record),
        style=read_part("story.css"),
        subject=name_subject([workdir]),
        refresh=refresh,
    )
    return write_page(output, page)


def read_record(workdir: Path) -> dict[str, Any]:
    """Content of pipeline.json. Raises UserError if it is missing or invalid."""
    try:
        record = json.loads((workdir / RECORD_FILE).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{workdir} has no {RECORD_FILE}: it is not the workdir of a pipeline") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{workdir / RECORD_FILE} is not valid JSON ({error})") from None
    stages = record.get("stages") if isinstance(record, dict) else None
    if not isinstance(stages, list) or not all(isinstance(entry, dict) and _NEEDED <= set(entry) for entry in stages):
        raise UserError(f"{workdir / RECORD_FILE} is not the record of a pipeline: it lacks its list of stages")
    return record


def render_story(workdir: Path, record: Mapping[str, Any]) -> Markup:
    """HTML of the pipeline's part of the page, above the curves."""
    entries = record["stages"]
    return Markup(
        _template().render(
            stages=[_describe_stage(entry) for entry in entries],
            edges=_find_edges(entries),
            height=len(entries),
            comparison=compare(entries, record.get("comparison", {})),
            problems=_choose_replies(workdir, [entry for entry in entries if entry["label"]]),
        )
    )


def tabulate(entries: Sequence[Entry]) -> list[dict[str, str]]:
    """Table rows of the evaluated models."""
    measured = [entry for entry in entries if entry["label"] and entry.get("metrics")]
    return [
        {"model": entry["label"], "stage": entry["name"], **_scores(entry), "minutes": _minutes(entry)}
        for entry in measured
    ]


def compare(entries: Sequence[Entry], comparison: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Table rows comparing ways to a model: the score of its last stage and the cost of all its stages."""
    by_name = {entry["name"]: entry for entry in entries}
    rows = []
    for label, names in comparison.items():
        stages = [by_name[name] for name in names if name in by_name]
        if stages and all("accuracy" in stage.get("metrics", {}) for stage in stages[-1:]):
            work = [stage.get("metrics", {}) for stage in stages]
            keys = ("flops", "sampling_flops", "tokens")
            total = {key: sum(metrics.get(key, 0) for metrics in work) for key in keys}
            measures = {"FLOP": f"{total['flops']:.2e}", "tokens": f"{total['tokens']:,.0f}"}
            measures["FLOP of sets"] = f"{total['sampling_flops']:.2e}" if total["sampling_flops"] else "–"
            rows.append({"model": label, **_scores(stages[-1]), **measures})
    return rows


def _scores(entry: Entry) -> dict[str, str]:
    metrics = entry["metrics"]
    return {
        "accuracy": format_value(metrics["accuracy"], metrics["accuracy_stderr"], is_rate=True),
        "format": format_value(metrics["format_rate"], None, is_rate=True),
        "language": format_value(metrics["language"], None, is_rate=True),
        "mixed": format_value(metrics["mixed"], None, is_rate=True),
        "length": f"{metrics['mean_length']:.1f}",
    }


def _minutes(entry: Entry) -> str:
    return f"{entry['seconds'] / 60:.1f}" if "seconds" in entry else ""


def _describe_stage(entry: Entry) -> dict[str, Any]:
    """One row of the stage diagram."""
    metrics = entry.get("metrics", {})
    measured = "accuracy" in metrics
    low = max(0.0, metrics["accuracy"] - metrics["accuracy_stderr"]) if measured else 0.0
    return {
        "name": entry["name"],
        "kind": entry["stage"],
        "label": entry["label"],
        "link": f"{entry['folder']}/{REPORT_FILE}" if "steps" in metrics else "",
        "from": entry["init"] or ", ".join(entry["takes"]),
        "status": entry["status"],
        "why": entry.get("why", ""),
        "minutes": _minutes(entry),
        "scores": _scores(entry) if measured else None,
        "mark": {
            "left": f"{100 * metrics['accuracy']:.2f}%",
            "low": f"{100 * low:.2f}%",
            "width": f"{200 * metrics['accuracy_stderr']:.2f}%",
        }
        if measured
        else None,
    }


def _find_edges(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Arcs from a stage's inputs to the stage, in diagram rows; `bend` grows with their distance. Models follow the
    thick arcs.
    """
    place = {entry["name"]: number for number, entry in enumerate(entries)}
    edges = []
    for entry in entries:
        for name in entry["takes"]:
            begin, end = place[name], place[entry["name"]]
            if entry["init"] != name and entry["stage"] not in ("sft", "distill", "rejection_sampling", "vocabulary"):
                continue  # problem sets: every stage uses them
            bend = min(1.0, 0.16 + 0.1 * (end - begin - 1))
            edges.append({"begin": begin + 0.5, "end": end + 0.5, "bend": bend, "model": entry["init"] == name})
    return edges


def _choose_replies(workdir: Path, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """First reply of each model to a few problems."""
    by_model = [(entry["label"], read) for entry in entries if (read := _read_samples(workdir / entry["folder"]))]
    count = min((len(rows) for _, rows in by_model), default=0)
    texts = _leave_out_shared([_flatten(row["problem"]) for row in by_model[0][1][:count]]) if count else []
    chosen = []
    for number in range(0, count, max(1, count // PROBLEMS)):
        first = by_model[0][1][number]
        chosen.append(
            {
                "problem": _shorten(texts[number]),
                "gold": first["gold"],
                "replies": [
                    {
                        "label": label,
                        "text": _shorten(rows[number]["completions"][0]),
                        "right": rows[number]["correct"][0],
                    }
                    for label, rows in by_model
                ],
            }
        )
    return chosen[:PROBLEMS]


def _read_samples(folder: Path) -> list[dict[str, Any]]:
    path = folder / SAMPLES
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def _flatten(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(str(turn["content"]) for turn in prompt)


def _leave_out_shared(texts: Sequence[str]) -> list[str]:
    """The texts without the lines (or else words) that all begin with, if those are long, as instructions are."""
    shared = os.path.commonprefix(list(texts)) if len(set(texts)) > 1 else ""
    cut = (shared.rfind("\n") + 1) or (shared.rfind(" ") + 1)
    return [f"… {text[cut:]}" for text in texts] if cut > SHARED_LIMIT else list(texts)


def _shorten(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]} …"


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(read_part("story.html"))
