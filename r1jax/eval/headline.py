"""Headline numbers of a run: each held-out measure before and after training, with its standard error.

Measures are listed separately, so that a gain in format alone is visible. "Before" is the run's first evaluation,
"after" the last. A run without evaluations is summarized by its reward, or its loss, at the start and at the end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

# Labels of the measures `eval/{benchmark}/…`.
MEASURES = {
    "pass@1": "strict, sampled",
    "greedy": "strict, greedy",
    "lenient": "lenient, sampled",
    "format_rate": "format",
}

# Further measures `eval/{benchmark}/…` that are not rewards.
_OTHERS = ("greedy_lenient", "greedy_format_rate", "mean_length", "problems")


@dataclass(frozen=True)
class Headline:
    """One measure at the start and at the end. Rates are shares from 0 to 1; `stderr` is None if none was logged.

    `before` is None if there was only one evaluation.
    """

    subject: str
    measure: str
    before: float | None
    after: float
    before_stderr: float | None = None
    after_stderr: float | None = None
    before_step: int | None = None
    after_step: int | None = None
    is_rate: bool = True


def find_benchmarks(names: Sequence[str]) -> list[str]:
    """The benchmarks among metric names `eval/{benchmark}/{measure}`, in order of appearance."""
    parts = [name.split("/") for name in names if name.startswith("eval/")]
    return list(dict.fromkeys("/".join(part[1:-1]) for part in parts if len(part) > 2))


def find_rewards(names: Sequence[str], benchmark: str) -> list[str]:
    """The rewards among the measures of a benchmark: those of a run's own, measured by their names."""
    prefix, given = f"eval/{benchmark}/", set(names)
    measures = [name.removeprefix(prefix) for name in names if name.startswith(prefix) and f"{name}_stderr" in given]
    return [name for name in measures if "/" not in name and name not in MEASURES and name not in _OTHERS]


def find_headlines(rows: Sequence[Mapping[str, Any]]) -> list[Headline]:
    """Headlines of a run's metrics rows (ascending steps): held-out measures if any, else reward, else loss."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    held_out = [
        _from_evaluations(rows, benchmark, measure)
        for benchmark in find_benchmarks(names)
        for measure in (*MEASURES, *find_rewards(names, benchmark))
    ]
    found = [headline for headline in held_out if headline is not None] or _from_held_out_rows(rows)
    return found or [headline for name in ("reward", "loss") if (headline := _from_training(rows, name))][:1]


def tabulate_headlines(headlines: Sequence[Headline]) -> list[dict[str, str]]:
    """Table rows: measure, before, after, change. Rates in percent, their changes in percentage points."""
    subjects = {headline.subject for headline in headlines}
    return [
        {
            "measure": headline.measure if len(subjects) == 1 else f"{headline.subject}: {headline.measure}",
            "before": format_value(headline.before, headline.before_stderr, headline.is_rate),
            "after": format_value(headline.after, headline.after_stderr, headline.is_rate),
            "change": format_change(headline),
        }
        for headline in headlines
    ]


def format_value(value: float | None, stderr: float | None, is_rate: bool) -> str:
    """A value with its standard error, such as `41.0% ± 3.5` or `0.62 ± 0.031`; a dash for None."""
    if value is None:
        return "–"
    if not is_rate:
        return f"{value:.3g}" + ("" if stderr is None else f" ± {stderr:.2g}")
    return f"{100 * value:.1f}%" + ("" if stderr is None else f" ± {100 * stderr:.1f}")


def format_change(headline: Headline) -> str:
    """The change with its sign, in percentage points for rates."""
    if headline.before is None:
        return "–"
    change = headline.after - headline.before
    text = f"{100 * change:+.1f} points" if headline.is_rate else f"{change:+.3g}"
    if text.startswith(("+0.0 ", "-0.0 ")) or not change:
        return "±0.0 points" if headline.is_rate else "±0"
    return text.replace("-", "−")


def _from_held_out_rows(rows: Sequence[Mapping[str, Any]]) -> list[Headline]:
    """Loss and accuracy on held-out rows of a supervised run."""
    found = []
    for key, measure in (("eval/loss", "loss"), ("eval/token_accuracy", "token accuracy")):
        if headline := _from_key(rows, key, "held-out rows", measure):
            found.append(replace(headline, is_rate=key != "eval/loss"))
    return found


def _from_evaluations(rows: Sequence[Mapping[str, Any]], benchmark: str, measure: str) -> Headline | None:
    found = _from_key(rows, f"eval/{benchmark}/{measure}", benchmark, MEASURES.get(measure, measure))
    return replace(found, is_rate=measure in MEASURES) if found else None


def _from_key(rows: Sequence[Mapping[str, Any]], key: str, subject: str, measure: str) -> Headline | None:
    found = [row for row in rows if row.get(key) is not None]
    if not found:
        return None
    first, last = (found[0] if len(found) > 1 else {}), found[-1]
    return Headline(
        subject=subject,
        measure=measure,
        before=first.get(key),
        after=last[key],
        before_stderr=first.get(f"{key}_stderr"),
        after_stderr=last.get(f"{key}_stderr"),
        before_step=first.get("step"),
        after_step=last["step"],
    )


def _from_training(rows: Sequence[Mapping[str, Any]], name: str) -> Headline | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    if not values:
        return None
    count = max(1, min(10, len(values) // 4))
    if len(values) == 1:
        return Headline("training", name, None, values[0], is_rate=False)
    measure = name if count == 1 else f"{name}, mean of {count} steps"
    return Headline("training", measure, sum(values[:count]) / count, sum(values[-count:]) / count, is_rate=False)
