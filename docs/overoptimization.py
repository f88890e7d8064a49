"""The plot and the table of configs/overoptimization.py: the learned score against the true one.

    python docs/overoptimization.py

Runs the config first, or goes on where it was interrupted. OUTPUT.svg shows both scores over the steps, OUTPUT.md has
the reward models' accuracy and calibration, and the scores at the beginning, at the best true score and at the end.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from page_table import put_table

from r1jax.core.metrics import read_rows

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = "configs/overoptimization.py"
PROXY, TRUTH = "rewards/reward_model/mean", "rewards/request_score/mean"
COLORS = {"many": "#0b6bcb", "few": "#c2410c"}
WIDTH, HEIGHT, LEFT, TOP = 360, 240, 56, 40  # of one panel, in pixels
SPAN = 8  # steps of a moving mean, and of the figures of the table

Curve = list[float]


class Study:
    """What a pipeline's workdir holds of one reward model and the run against it."""

    def __init__(self, workdir: pathlib.Path, name: str):
        record = json.loads((workdir / "pipeline.json").read_text())
        folders = {entry["name"]: workdir / entry["folder"] for entry in record["stages"]}
        scored, run = folders[f"reward_{name}"], folders[f"rl_{name}"]
        self.name = name
        self.held_out: dict[str, Any] = read_rows(scored / "metrics.jsonl")[-1]
        self.calibration: dict[str, Any] = json.loads((scored / "calibration.json").read_text())
        rows = read_rows(run / "metrics.jsonl")
        self.proxy, self.truth = (smooth([row[key] for row in rows if key in row]) for key in (PROXY, TRUTH))

    @property
    def misfits(self) -> int:
        """Tenths whose gap is above five points and above two standard errors."""
        return sum(abs(t["predicted"] - t["observed"]) > max(0.05, 2 * t["stderr"]) for t in self.calibration["tenths"])


def smooth(values: Sequence[float]) -> Curve:
    """Means of the last steps up to each."""
    return [float(np.mean(values[max(0, end - SPAN) : end])) for end in range(1, len(values) + 1)]


def tabulate(studies: Sequence[Study], labels: Sequence[str]) -> str:
    """Markdown: a row for each reward model."""
    columns = (
        "preferences",
        "held-out accuracy",
        "calibration error",
        "tenths off",
        "score at first",
        "at the best true score",
        "last",
        "true score at first",
        "best",
        "last",
    )
    lines = [f"| {' | '.join(columns)} |", "| --- |" + " --- |" * (len(columns) - 1)]
    for study, label in zip(studies, labels, strict=True):
        best = int(np.argmax(study.truth))
        cells = [
            label,
            f"{100 * study.held_out['eval/accuracy']:.1f}% of {study.calibration['pairs']:,}",
            f"{100 * study.calibration['error']:.1f} points",
            f"{study.misfits} of {len(study.calibration['tenths'])}",
            *(f"{study.proxy[at]:.2f}" for at in (0, best, -1)),
            f"{study.truth[0]:.2f}",
            f"{study.truth[best]:.2f} (step {best + 1})",
            f"{study.truth[-1]:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(studies: Sequence[Study], labels: Sequence[str]) -> str:
    """An SVG of two panels: the learned score and the true one over the steps of reinforcement."""
    panels = (("score of the reward model (proxy)", "proxy"), ("true score", "truth"))
    height = TOP + HEIGHT + 44 + 18 * len(studies)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * (WIDTH + LEFT + 20)} {height}" '
        'font-family="sans-serif" font-size="12" fill="#1f2937"><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-weight="bold">GRPO against reward models: proxy and truth</text>',
    ]
    for number, (title, key) in enumerate(panels):
        parts += draw_panel(
            {study.name: getattr(study, key) for study in studies}, title, LEFT + number * (WIDTH + LEFT + 20)
        )
    for number, (study, label) in enumerate(zip(studies, labels, strict=True)):
        y = TOP + HEIGHT + 44 + 18 * number
        parts.append(f'<rect x="{LEFT}" y="{y - 8}" width="18" height="4" fill="{COLORS[study.name]}"/>')
        parts.append(f'<text x="{LEFT + 26}" y="{y}">reward model of {label} preferences</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def draw_panel(curves: dict[str, Curve], title: str, left: int) -> list[str]:
    """Axes, grid and curves."""
    values = [value for curve in curves.values() for value in curve]
    low, high, last = min(0.0, *values), max(values), max(len(curve) for curve in curves.values())
    x = lambda step: left + WIDTH * step / last
    y = lambda value: TOP + HEIGHT * (high - value) / (high - low)
    parts = [f'<text x="{left}" y="{TOP - 6}" fill="#4b5563">{title}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        value = low + share * (high - low)
        parts.append(f'<path d="M{left} {y(value):.1f}h{WIDTH}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>')
        step = f"{share * last:.0f}"
        parts.append(f'<text x="{x(share * last):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{step}</text>')
    for name, curve in curves.items():
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in enumerate(curve, 1))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLORS[name]}" stroke-width="2"/>')
    return parts


def main(arguments: Sequence[str]) -> None:
    """Runs, plots, tabulates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--many", type=int, default=5000, help="pairs of the first reward model")
    parser.add_argument("--few", type=int, default=12, help="pairs of the second")
    parser.add_argument("--workdir", type=pathlib.Path, default=ROOT / "runs" / "overoptimization")
    parser.add_argument(
        "--output", type=pathlib.Path, default=ROOT / "docs" / "overoptimization", help="without its ending"
    )
    flags = parser.parse_args(arguments)
    spec = f"--config={CONFIG}:many={flags.many},few={flags.few}"
    subprocess.run([sys.executable, "-m", "r1jax.train", spec, f"--workdir={flags.workdir}"], cwd=ROOT, check=True)
    studies, labels = [Study(flags.workdir, name) for name in COLORS], (f"{flags.many:,}", f"{flags.few:,}")
    flags.output.with_suffix(".svg").write_text(plot(studies, labels))
    page, table = flags.output.with_suffix(".md"), tabulate(studies, labels)
    put_table(page, table)
    print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
