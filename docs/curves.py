"""Learning curves of several ways to train, over several seeds: runs them, then writes one plot and one table.

    python docs/curves.py                                              five losses, three seeds: fifteen runs
    python docs/curves.py --vary=reward=number,self_rank --output=docs/self_rank

Each run is `python -m r1jax.train --config=CONFIG:NAME=VALUE,seed=SEED`, in a folder of its own; runs that are finished
are not done again, so the same command goes on after an interruption. OUTPUT.svg has the means over seeds, OUTPUT.md
the table with standard errors over seeds.
"""

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from r1jax.core.metrics import read_rows

ROOT = pathlib.Path(__file__).resolve().parent.parent
COLORS = ("#0b6bcb", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490", "#be123c", "#475569")
WIDTH, HEIGHT, LEFT, TOP = 380, 240, 52, 34  # of one panel, in pixels

Rows = list[dict]
Curve = list[tuple[int, float]]


class Variant(NamedTuple):
    """One way to train: its name, and the metrics of each of its seeds."""

    name: str
    runs: list[Rows]

    def curves(self, key: str) -> list[Curve]:
        """One curve a seed; a key that begins with / is an evaluation's, under whatever name."""
        return [[(row["step"], value) for row in run if (value := find(row, key)) is not None] for run in self.runs]


def find(row: dict, key: str) -> float | None:
    """A metric of a row; None where it is not there."""
    if not key.startswith("/"):
        return row.get(key)
    return next((value for name, value in row.items() if name.startswith("eval/") and name.endswith(key)), None)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds at every step that all of them have."""
    steps = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
    return [(step, float(np.mean([dict(curve)[step] for curve in curves]))) for step in steps]


def run_all(config: str, vary: str, values: Sequence[str], seeds: Sequence[int], folder: pathlib.Path) -> list[Variant]:
    """Every run that is not finished yet, one after the other."""
    variants = []
    for value in values:
        runs = []
        for seed in seeds:
            workdir = folder / f"{vary}-{value}-seed-{seed}"
            spec = f"--config={config}:{vary}={value},seed={seed}"
            subprocess.run([sys.executable, "-m", "r1jax.train", spec, f"--workdir={workdir}"], cwd=ROOT, check=True)
            runs.append(read_rows(workdir / "metrics.jsonl"))
        variants.append(Variant(value, runs))
    return variants


# --- Table ---


def tabulate(variants: Sequence[Variant], vary: str) -> str:
    """Markdown: what every variant came to, mean over seeds with its standard error."""
    columns: dict[str, Callable[[Variant], str]] = {
        "held-out before, sampled": lambda v: describe([run[0][1] for run in v.curves("/pass@1")]),
        "held-out after, sampled": lambda v: describe([run[-1][1] for run in v.curves("/pass@1")]),
        "held-out after, greedy": lambda v: describe([run[-1][1] for run in v.curves("/greedy")]),
        "reward, last quarter": lambda v: describe(last_quarters(v, "reward"), percent=False),
        "length, last quarter": lambda v: describe(last_quarters(v, "completions/mean_length"), percent=False),
        "minutes": lambda v: f"{np.mean([sum(value for _, value in run) for run in v.curves('step_time')]) / 60:.1f}",
    }
    names = {key for variant in variants for run in variant.runs for row in run for key in row}
    for name in sorted(name for name in names if name.endswith("/agreement")):
        columns["agreement with the truth"] = lambda v, name=name: describe(
            [float(np.mean([value for _, value in run])) for run in v.curves(name) if run]
        )
    lines = [f"| {vary} | seeds | {' | '.join(columns)} |", f"| --- | {'--- | ' * (len(columns) + 1)}".rstrip()]
    for variant in variants:
        cells = [column(variant) for column in columns.values()]
        lines.append(f"| {variant.name} | {len(variant.runs)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def last_quarters(variant: Variant, key: str) -> list[float]:
    """The mean of a metric over the last quarter of the steps, for every seed that has it."""
    curves = [curve for curve in variant.curves(key) if curve]
    return [float(np.mean([value for _, value in curve[-max(1, len(curve) // 4) :]])) for curve in curves]


def describe(values: Sequence[float], *, percent: bool = True) -> str:
    """`mean ± standard error` over seeds."""
    if not values:
        return "–"
    scale, digits = (100, 0) if percent else (1, 2)
    stderr = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{scale * np.mean(values):.{digits}f} ± {scale * stderr:.{digits}f}{' %' * percent}"


# --- Plot ---


def plot(variants: Sequence[Variant], title: str) -> str:
    """An SVG of two panels, held-out pass@1 and training reward over steps: means over seeds, each seed faint."""
    panels = [("held-out pass@1, sampled", "/pass@1"), ("reward", "reward")]
    width, height = len(panels) * (WIDTH + LEFT + 16), HEIGHT + TOP + 44 + 18 * len(variants)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12" fill="#1f2937"><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{LEFT}" y="16" font-weight="bold">{title}</text>',
    ]
    for number, (label, key) in enumerate(panels):
        parts += draw_panel(variants, label, key, number * (WIDTH + LEFT + 16) + LEFT)
    for number, variant in enumerate(variants):
        y = HEIGHT + TOP + 48 + 18 * number
        parts.append(f'<rect x="{LEFT}" y="{y - 8}" width="18" height="4" fill="{COLORS[number % len(COLORS)]}"/>')
        parts.append(f'<text x="{LEFT + 26}" y="{y}">{variant.name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def draw_panel(variants: Sequence[Variant], label: str, key: str, left: int) -> list[str]:
    """Axes, grid and curves of one metric."""
    curves = {variant.name: [curve for curve in variant.curves(key) if curve] for variant in variants}
    points = [point for each in curves.values() for curve in each for point in curve]
    last, top = max((step for step, _ in points), default=1), max((value for _, value in points), default=1.0)
    top = top if top > 0 else 1.0
    x = lambda step: left + WIDTH * step / max(last, 1)
    y = lambda value: TOP + HEIGHT * (1 - max(value, 0.0) / top)
    parts = [f'<text x="{left}" y="{TOP - 4}" fill="#4b5563">{label}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        at = y(share * top)
        parts.append(f'<path d="M{left} {at:.1f}h{WIDTH}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{share * top:.2f}</text>')
        parts.append(
            f'<text x="{x(share * last):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{share * last:.0f}</text>'
        )
    for number, each in enumerate(curves.values()):
        color = COLORS[number % len(COLORS)]
        lines = [(curve, 1, 0.25) for curve in each] + ([(mean_curve(each), 2.5, 1)] if each else [])
        for curve, stroke, opacity in lines:
            path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in curve)
            style = f'fill="none" stroke="{color}" stroke-width="{stroke}" stroke-opacity="{opacity}"'
            parts.append(f'<polyline points="{path}" {style}/>')
    return parts


def main(arguments: Sequence[str]) -> None:
    """Runs, plots, tabulates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/grpo_digits.py")
    parser.add_argument("--vary", default="loss=grpo,dr_grpo,dapo,gspo,rloo", help="an argument of the config: a=x,y,z")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workdir", type=pathlib.Path, default=ROOT / "runs" / "curves", help="where the runs write")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs" / "curves", help="without its ending")
    flags = parser.parse_args(arguments)
    vary, _, values = flags.vary.partition("=")
    seeds = [int(seed) for seed in flags.seeds.split(",")]
    variants = run_all(flags.config, vary, values.split(","), seeds, flags.workdir)
    title = f"{pathlib.Path(flags.config).stem}: {vary}, {len(seeds)} seeds"
    flags.output.with_suffix(".svg").write_text(plot(variants, title))
    table = tabulate(variants, vary)
    flags.output.with_suffix(".md").write_text(f"# {title}\n\n![{title}]({flags.output.name}.svg)\n\n{table}")
    print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
