"""The story of a pipeline for its report page: what came of what, how good each model is, what each says.

Read from pipeline.json and from the evaluations that lie beside the stages' models. The curves on the page are those of
the reinforcement stages, drawn as any comparison of runs; every stage's own page is a link away.

Texts of models enter as autoescaped HTML text, in elements that hold nothing else.
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
from r1jax.eval.report import REPORT_FILE, read_part, render_page

RECORD_FILE = "pipeline.json"
EVALUATION_FILE = "evaluation.json"
SAMPLES = "evaluation.samples.jsonl"
PROBLEMS = 4  # whose replies by all models are on the page
TEXT_LIMIT = 1200  # characters of one reply
SHARED_LIMIT = 80  # characters that problems may have in common before they are left out

Entry = Mapping[str, Any]


def is_pipeline(workdir: str | Path) -> bool:
    """Whether a folder is a pipeline's."""
    return (Path(workdir) / RECORD_FILE).exists()


def write_story(workdir: str | Path, output: str | Path | None = None) -> Path:
    """Writes the page of a pipeline, by default to `workdir/report.html`, in one move, and returns where it is.

    Raises UserError for a folder without a readable pipeline.json, and where `output` cannot be written.
    """
    workdir = Path(workdir)
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
    )
    draft = output.with_name(output.name + ".draft")
    try:
        draft.write_text(page, encoding="utf-8")
        os.replace(draft, output)
    except OSError as error:
        raise UserError(f"The report cannot be written to {output}: {error.strerror}.") from error
    return output


def read_record(workdir: Path) -> dict[str, Any]:
    """pipeline.json. Raises UserError if there is none that can be read."""
    try:
        return json.loads((workdir / RECORD_FILE).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{workdir} holds no {RECORD_FILE}: it is no pipeline's folder") from None
    except ValueError as error:
        raise UserError(f"{workdir / RECORD_FILE} is no JSON ({error})") from None


def render_story(workdir: Path, record: Mapping[str, Any]) -> Markup:
    """The part of the page that a pipeline has beside its curves."""
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
    """The measured models as rows of a table."""
    measured = [entry for entry in entries if entry["label"] and entry.get("metrics")]
    return [
        {"model": entry["label"], "stage": entry["name"], **_scores(entry), "minutes": _minutes(entry)}
        for entry in measured
    ]


def compare(entries: Sequence[Entry], comparison: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """The ways to a model, each with what its last stage's model scores and what all its stages took."""
    by_name = {entry["name"]: entry for entry in entries}
    rows = []
    for label, names in comparison.items():
        stages = [by_name[name] for name in names if name in by_name]
        if stages and all("accuracy" in stage.get("metrics", {}) for stage in stages[-1:]):
            work = [stage.get("metrics", {}) for stage in stages]
            total = {key: sum(metrics.get(key, 0) for metrics in work) for key in ("flops", "tokens")}
            measures = {"FLOP": f"{total['flops']:.2e}", "tokens": f"{total['tokens']:,.0f}"}
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
    """A row of the diagram."""
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
    """Arcs from what a stage takes to the stage, in rows; `bend` grows with their distance. A model goes along the
    heavy ones.
    """
    place = {entry["name"]: number for number, entry in enumerate(entries)}
    edges = []
    for entry in entries:
        for name in entry["takes"]:
            begin, end = place[name], place[entry["name"]]
            if entry["init"] != name and entry["stage"] not in ("sft", "distill", "rejection_sampling", "vocabulary"):
                continue  # problems to ask: every stage has them
            bend = min(1.0, 0.16 + 0.1 * (end - begin - 1))
            edges.append({"begin": begin + 0.5, "end": end + 0.5, "bend": bend, "model": entry["init"] == name})
    return edges


def _choose_replies(workdir: Path, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """For a few problems the first reply of each model."""
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
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]


def _flatten(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(str(turn["content"]) for turn in prompt)


def _leave_out_shared(texts: Sequence[str]) -> list[str]:
    """The texts without the lines, or else words, that all begin with, where those are long, as instructions are."""
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
