"""Selection of a report page's charts: metric names in, sections of charts out. The page itself draws them.

A table of templates groups metrics and says how to read them (unit, scale, stacked or not); `*` in a key matches any
name. Metrics without a template go to a last section, so that none is missing. On a page that compares runs a chart
shows one metric with one line per run.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from r1jax.eval.headline import MEASURES, find_benchmarks, find_rewards


@dataclass(frozen=True)
class Line:
    """One curve: metric key, label, key of its standard error (if any), and index of the run."""

    key: str
    label: str
    stderr: str | None = None
    run: int = 0


@dataclass(frozen=True)
class Chart:
    """One chart. `unit` is percent (for shares from 0 to 1), seconds or number; `stack` draws lines as stacked areas.

    `total` is a key whose excess over the stacked lines is drawn as one more area, "other".
    """

    title: str
    lines: tuple[Line, ...]
    unit: str = "number"
    stack: bool = False
    total: str | None = None
    log: bool = False
    zero: bool = False
    domain: tuple[float, float] | None = None


@dataclass(frozen=True)
class Section:
    """A group of charts. Charts of a leading section are larger; a folded section opens on a click."""

    title: str
    charts: tuple[Chart, ...] = field(default=())
    leads: bool = False
    folded: bool = False


def _chart(title: str, *lines: str | tuple[str, str], **options: object) -> Chart:
    """A template from keys or (key, label) pairs. A key's default label is its wildcard match, or its last word."""
    pairs = [line if isinstance(line, tuple) else (line, "") for line in lines]
    return Chart(title, tuple(Line(key, label) for key, label in pairs), **options)  # type: ignore[arg-type]


_RATIO = "sampling/importance_sampling_ratio"
_DIFFERENCE = "sampling/sampling_logp_difference"

TEMPLATES = (
    Section(
        "Learning",
        (
            _chart("Reward", "reward"),
            _chart("Reward by name", "rewards/*/mean"),
            _chart("Loss", "loss"),
            _chart("Held-out loss", ("eval/loss", "held out")),
            _chart(
                "Token accuracy",
                ("token_accuracy", "training"),
                ("eval/token_accuracy", "held out"),
                unit="percent",
                domain=(0, 1),
            ),
        ),
        leads=True,
    ),
    Section(
        "Completions and policy",
        (
            _chart("Length in tokens", "completions/mean_length", zero=True),
            _chart("Cut off at the limit", "completions/clipped_ratio", unit="percent", domain=(0, 1)),
            _chart("Groups of equal reward", "frac_reward_zero_std", unit="percent", domain=(0, 1)),
            _chart("Spread of reward", "reward_std", zero=True),
            _chart("Entropy", "entropy", zero=True),
            _chart("KL to the reference", "kl", zero=True),
            _chart("Loss", "loss"),
            _chart(
                "Clipped tokens",
                ("clip_ratio/low_mean", "low"),
                ("clip_ratio/high_mean", "high"),
                ("clip_ratio/region_mean", "either"),
                unit="percent",
                zero=True,
            ),
        ),
    ),
    Section(
        "Optimizer and numerics",
        (
            _chart("Gradient norm", "grad_norm", zero=True),
            _chart("Learning rate", "learning_rate", zero=True),
            _chart("Loss of tokens further ahead", ("mtp_loss", "")),
            _chart("Balance of experts within a sequence", ("balance_loss", "")),
            _chart(
                "Most loaded expert over the mean",
                ("router/max_violation", "of any layer"),
                ("router/mean_violation", "mean of layers"),
            ),
            _chart("Sampler against trainer: |Δ log-prob|", f"{_DIFFERENCE}/mean", f"{_DIFFERENCE}/max", log=True),
            _chart("Sampler against trainer: ratio", f"{_RATIO}/min", f"{_RATIO}/mean", f"{_RATIO}/max"),
        ),
    ),
    Section(
        "Time",
        (
            _chart(
                "Seconds a step",
                ("time/rollout", "rollout"),
                ("time/reward", "reward"),
                ("time/input", "input"),
                ("time/train", "train"),
                unit="seconds",
                stack=True,
                total="step_time",
            ),
            _chart(
                "Tokens per second",
                ("rollout/tokens_per_second", "rollout"),
                ("train/tokens_per_second", "train"),
                zero=True,
            ),
            _chart("Tokens so far", "num_tokens", zero=True),
            _chart("Places of a packed row that hold a token", ("utilisation", ""), unit="percent", domain=(0, 1)),
            _chart("Share of peak FLOPs", "mfu", unit="percent", zero=True),
        ),
    ),
)


def plan_charts(names: Sequence[str]) -> list[Section]:
    """Sections of charts for the metrics of one run. Every metric appears as a line, an error band or a total."""
    # With rewards, the surrogate loss says little; without them it is the main curve.
    late = {"loss"} if "reward" in names else set()
    learning = _fill(TEMPLATES[0], [name for name in names if name not in late])
    early = {key for chart in learning.charts for key in _keys(chart)}
    others = [_fill(section, [name for name in names if name not in early]) for section in TEMPLATES[1:]]
    held_out = tuple(chart for benchmark in find_benchmarks(names) for chart in _held_out(benchmark, names))
    sections = [replace(learning, charts=tuple(c for c in held_out if c.lines) + learning.charts), *others]
    used = {key for section in sections for chart in section.charts for key in _keys(chart)}
    rest = [name for name in names if name not in used]
    stderrs = {_stderr(name, names) for name in rest}
    charts = tuple(Chart(name, (Line(name, name, _stderr(name, names)),)) for name in rest if name not in stderrs)
    return [section for section in [*sections, Section("Other metrics", charts, folded=True)] if section.charts]


def plan_comparison(names_by_run: Sequence[Sequence[str]], labels: Sequence[str]) -> list[Section]:
    """Sections of charts for several runs: one chart per metric, one line per run that has it."""
    everything = list(dict.fromkeys(name for names in names_by_run for name in names))
    sections = []
    for section in plan_charts(everything):
        charts = [_compare(chart, line, names_by_run, labels) for chart in section.charts for line in chart.lines]
        totals = [
            _compare(Chart(chart.title, (), unit=chart.unit, zero=True), Line(chart.total, "all"), names_by_run, labels)
            for chart in section.charts
            if chart.total in everything and chart.total is not None
        ]
        sections.append(replace(section, charts=tuple(charts + totals)))
    return sections


def _fill(section: Section, names: Sequence[str]) -> Section:
    """The section with wildcards expanded, without lines and charts that have no metric."""
    charts = []
    for chart in section.charts:
        lines = tuple(line for pattern in chart.lines for line in _match(pattern, names))
        if lines:
            charts.append(replace(chart, lines=lines, total=chart.total if chart.total in names else None))
    return replace(section, charts=tuple(charts))


def _match(pattern: Line, names: Sequence[str]) -> list[Line]:
    expression = re.compile(re.escape(pattern.key).replace(r"\*", "(.+)"))
    found = []
    for name in names:
        if match := expression.fullmatch(name):
            label = pattern.label or (match.group(1) if match.groups() else name.rsplit("/", 1)[-1])
            found.append(Line(name, label, _stderr(name, names)))
    return found


def _held_out(benchmark: str, names: Sequence[str]) -> tuple[Chart, Chart]:
    """The chart of a benchmark's rates, and that of the run's own rewards on it."""
    make = lambda measure, label: Line(key := f"eval/{benchmark}/{measure}", label, _stderr(key, names))
    rates = tuple(make(*measure) for measure in MEASURES.items() if f"eval/{benchmark}/{measure[0]}" in names)
    rewards = tuple(make(name, name) for name in find_rewards(names, benchmark))
    return (
        Chart(f"Held-out: {benchmark}", rates, unit="percent", domain=(0, 1)),
        Chart(f"Held-out rewards: {benchmark}", rewards),
    )


def _compare(chart: Chart, line: Line, names_by_run: Sequence[Sequence[str]], labels: Sequence[str]) -> Chart:
    title = chart.title if len(chart.lines) == 1 else f"{chart.title} · {line.label}"
    stderrs = [_stderr(line.key, names) for names in names_by_run]
    lines = [
        Line(line.key, label, stderr, run)
        for run, (label, names, stderr) in enumerate(zip(labels, names_by_run, stderrs, strict=True))
        if line.key in names
    ]
    return replace(chart, title=title, lines=tuple(lines), stack=False, total=None, zero=chart.zero or chart.stack)


def _stderr(name: str, names: Sequence[str]) -> str | None:
    return f"{name}_stderr" if f"{name}_stderr" in names else None


def _keys(chart: Chart) -> list[str]:
    keys = [key for line in chart.lines for key in (line.key, line.stderr)]
    return [key for key in [*keys, chart.total] if key is not None]
