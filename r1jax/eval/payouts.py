"""Values of rewards for existing completions, and disagreements between two graders: a table and a page.

For checking a reward before training on it: the rows of a file (`completions` and the columns that the rewards use, as
written by `generate` and `evaluate`, or `completion`, as written by a run) are scored by each reward, and every
completion for which two of them differ is shown with the gold, the values and the rule by which the reader of answers
decided. Text written by a model enters the page as escaped text; the page has no script and loads nothing.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np

import r1jax
from r1jax.core.errors import UserError
from r1jax.rewards.answers import explain_answer
from r1jax.rewards.base import load_rewards, score
from r1jax.rewards.completions import read_text
from r1jax.rewards.reader.golds import read_gold

# Columns of our other files, and their names in rewards.
_ALIASES = {"gold": "solution", "problem": "prompt"}
SHOWN = 200  # completions on a page
TEXT_LIMIT = 1500  # characters of one completion: its end, where the answer is
_SAME = 1e-9

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="generator" content="r1jax {{ version }}">
<meta name="subject" content="{{ subject }}">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { border-bottom: 1px solid #8886; padding: .3rem .8rem;
text-align: left; } pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8881; padding: .6rem; }
article { border-top: 2px solid #8886; padding: .4rem 0; } .rule { color: #777; }
</style></head><body>
<h1>{{ title }}</h1>
<table><tr>{% for name in summary[0] %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in summary %}<tr>{% for value in row.values() %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}</table>
{% if pairs %}<table><tr>{% for name in pairs[0] %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in pairs %}<tr>{% for value in row.values() %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}</table>
{% endif %}<p>{{ note }}</p>
{% for one in shown %}<article><p><b>{{ one.place }}</b>{% if one.gold %}, gold <code>{{ one.gold }}</code>{% endif %}:
{% for name, value in one.paid.items() %}{{ name }} <b>{{ value }}</b>{{ ", " if not loop.last }}{% endfor %}
{% if one.rule %}<br><span class="rule">{{ one.rule }}</span>{% endif %}</p><pre>{{ one.text }}</pre></article>
{% endfor %}</body></html>
"""


@dataclass(frozen=True)
class Payouts:
    """Values of each reward for each completion (NaN: does not apply), by name, and the completions with their rows.

    `places[i]` is (index of the row, number of the completion in it) of completion i.
    """

    values: dict[str, np.ndarray]
    rows: Sequence[Mapping[str, Any]]
    places: list[tuple[int, int]]
    texts: list[str]


def pay(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Payouts:
    """Scores all completions of the rows by each reward.

    Raises UserError for an unknown reward, one that needs a model, a row without completions, or a missing column.
    """
    rows = [{_ALIASES.get(key, key) if _ALIASES.get(key) not in row else key: row[key] for key in row} for row in rows]
    rewards = load_rewards(dict.fromkeys(names, 1.0))
    found = [_completions(row, number) for number, row in enumerate(rows, 1)]
    places = [(row, sample) for row, texts in enumerate(found) for sample in range(len(texts))]
    keys = {key for row in rows for key in row} - {"completions", "completion", "completion_tokens", "prompt"}
    tokens = [row.get("completion_tokens") or [()] * len(texts) for row, texts in zip(rows, found, strict=True)]
    completions = [found[row][sample] for row, sample in places]
    scores = score(
        rewards,
        prompts=[rows[row].get("prompt") or "" for row, _ in places],
        completions=completions,
        completion_ids=[tokens[row][sample] for row, sample in places],
        columns={key: [rows[row].get(key) for row, _ in places] for key in keys},
    )
    return Payouts(scores.by_name, rows, places, [read_text(completion) for completion in completions])


def summarize(payouts: Payouts) -> list[dict[str, Any]]:
    """A table row per reward: its mean over the completions to which it applies, the number it pays, and the number to
    which it does not apply.
    """
    table = []
    for name, values in payouts.values.items():
        applies = values[~np.isnan(values)]
        mean = float(applies.mean()) if len(applies) else math.nan
        counts = {"paid": int((applies > 0).sum()), "not paid": int((applies <= 0).sum())}
        table.append({"reward": name, "mean": f"{mean:.4f}", **counts, "does not apply": len(values) - len(applies)})
    return table


def compare_graders(payouts: Payouts) -> list[dict[str, Any]]:
    """A table row per pair of rewards: numbers of completions that only one of them pays, and for which they differ."""
    table = []
    for a, b in itertools.combinations(payouts.values, 2):
        first, second = (np.nan_to_num(payouts.values[name], nan=0.0) for name in (a, b))
        only = {"only the first pays": int(((first > 0) & (second <= 0)).sum())}
        only["only the second pays"] = int(((second > 0) & (first <= 0)).sum())
        table.append({"first": a, "second": b, **only, "values differ": int(_differ(first, second).sum())})
    return table


def render_payouts(payouts: Payouts, title: str, subject: str = "") -> str:
    """HTML of the page: both tables, and the completions for which two rewards differ (all, for a single reward).

    subject: digest by which the page is known again (eval/report.py).
    """
    values = np.array([np.nan_to_num(values, nan=0.0) for values in payouts.values.values()])
    chosen = (
        np.flatnonzero(_differ(values.min(0), values.max(0))) if len(values) > 1 else np.arange(len(payouts.places))
    )
    what = "for which two rewards differ" if len(values) > 1 else "of the file"
    note = (
        f"{min(len(chosen), SHOWN)} of {len(chosen)} completions {what}; of long ones the last {TEXT_LIMIT} characters."
    )
    environment = jinja2.Environment(autoescape=True)
    return environment.from_string(_PAGE).render(
        title=title,
        version=r1jax.__version__,
        subject=subject,
        summary=summarize(payouts),
        pairs=compare_graders(payouts),
        note=note,
        shown=[_describe(payouts, int(number)) for number in chosen[:SHOWN]],
    )


def _describe(payouts: Payouts, number: int) -> dict[str, Any]:
    row, sample = payouts.places[number]
    text = payouts.texts[number]
    gold = read_gold(payouts.rows[row].get("solution"))
    values = {name: values[number] for name, values in payouts.values.items()}
    return {
        "place": f"row {row + 1}, completion {sample + 1}",
        "gold": gold if gold is None or len(gold) < 100 else gold[:97] + "…",
        "paid": {name: "does not apply" if math.isnan(value) else f"{value:g}" for name, value in values.items()},
        "rule": "" if gold is None else f"answer: {explain_answer(text, gold)[0].rule}",
        "text": text if len(text) <= TEXT_LIMIT else "…" + text[-TEXT_LIMIT:],
    }


def _differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a - b) > _SAME


def _completions(row: Mapping[str, Any], number: int) -> Sequence[Any]:
    completions = row.get("completions", [row["completion"]] if "completion" in row else None)
    if not isinstance(completions, list) or not completions:
        raise UserError(
            f"row {number} must have completions (a list of texts), got {str(completions)[:60]} (--samples)"
        )
    return completions
