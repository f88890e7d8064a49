"""Six ways to teach a task with equal work (configs/methods.py), over several seeds: runs them, then writes one plot
and one table.

    python docs/methods.py

Each seed is a pipeline in a folder of its own, and goes on where it was interrupted; the first makes the base of all.
OUTPUT.svg shows accuracy by way, OUTPUT.md has the table with standard errors over seeds.
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

ROOT = pathlib.Path(__file__).resolve().parent.parent
COLORS = ("#475569", "#0b6bcb", "#7e22ce", "#15803d", "#a16207", "#c2410c")
LEFT, WIDTH, ROW, TOP = 190, 470, 34, 44  # pixels
# What each way has that the others have not.
NEEDS = {
    "SFT": "400 worked sums",
    "SFT, reward model, PPO": "400 worked sums, and somebody who orders answers",
    "DPO": "a rule that orders answers",
    "GRPO, rules": "a rule that orders answers",
    "GRPO, self-ranking": "nothing",
    "distillation": "a better model, and a rule that selects its answers",
}

Entries = dict[str, dict[str, Any]]


def run_all(seeds: Sequence[int], folder: pathlib.Path, arguments: str, flags: Sequence[str]) -> list[Entries]:
    """The record of every seed's stages, after running what is missing."""
    records: list[Entries] = []
    for seed in seeds:
        own = [f"--config=configs/methods.py:seed={seed},{arguments}", f"--workdir={folder / f'seed-{seed}'}"]
        if records and not flags:
            base = folder / f"seed-{seeds[0]}" / records[0]["base"]["folder"]
            flags = ["--config.skip=base", f"--config.stages.base.init={base}"]
        subprocess.run([sys.executable, "-m", "r1jax.train", *own, *flags], cwd=ROOT, check=True)
        records.append(read(folder / f"seed-{seed}"))
    return records


def read(workdir: pathlib.Path) -> Entries:
    """The stages of a pipeline by name, and under "comparison" the ways."""
    record = json.loads((workdir / "pipeline.json").read_text())
    return {**{entry["name"]: entry for entry in record["stages"]}, "comparison": record["comparison"]}


def read_accuracy(folder: pathlib.Path) -> float:
    """The accuracy of a model that a pipeline measured."""
    return float(json.loads((folder / "evaluation.json").read_text())["benchmarks"]["held_out"]["pass@1"])


def count(record: Entries, names: Sequence[str]) -> float:
    """FLOPs of a way's stages, samples of sets included."""
    metrics = [record[name]["metrics"] for name in names]
    return sum(each.get("flops", 0.0) + each.get("sampling_flops", 0.0) for each in metrics)


def describe(values: Sequence[float], scale: float = 100, digits: int = 1, unit: str = "%") -> str:
    """`mean ± standard error` over seeds."""
    stderr = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{scale * np.mean(values):.{digits}f}{unit} ± {scale * stderr:.{digits}f}"


def tabulate(records: Sequence[Entries]) -> str:
    """Markdown: accuracy, form, length and work of every way."""
    ways = records[0]["comparison"]
    lines = ["| way | accuracy | by seed | format | tokens a reply | 1e11 FLOP | needs |", "| --- |" + " --- |" * 6]
    for way, names in ways.items():
        last = [record[names[-1]]["metrics"] for record in records]
        accuracy, form, length = ([each[key] for each in last] for key in ("accuracy", "format_rate", "mean_length"))
        cells = [
            describe(accuracy),
            ", ".join(f"{100 * value:.1f}" for value in accuracy),
            describe(form),
            describe(length, 1, 1, ""),
            describe([count(record, names) for record in records], 1e-11, 2, ""),
            NEEDS[way],
        ]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(records: Sequence[Entries], marks: dict[str, float]) -> str:
    """An SVG: of every way each seed, the mean, and a bar of two standard errors; other models' `marks` as lines."""
    ways = records[0]["comparison"]
    height = TOP + ROW * len(ways) + 46
    x = lambda share: LEFT + WIDTH * share
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 40} {height}" font-family="sans-serif" '
        'font-size="12" fill="#1f2937"><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-weight="bold">held-out accuracy at equal work, {len(records)} seeds</text>',
    ]
    bottom = TOP + ROW * len(ways)
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path d="M{x(share):.1f} {TOP}V{bottom}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{x(share):.1f}" y="{bottom + 18}" text-anchor="middle">{100 * share:.0f}%</text>')
    for name, accuracy in marks.items():
        at = x(accuracy)
        parts.append(f'<path d="M{at:.1f} {TOP}V{bottom}" stroke="#9ca3af" stroke-dasharray="4 3"/>')
        parts.append(f'<text x="{at:.1f}" y="{TOP - 6}" text-anchor="middle" fill="#6b7280">{name}</text>')
    for number, (way, names) in enumerate(ways.items()):
        values = [record[names[-1]]["metrics"]["accuracy"] for record in records]
        mean, y, color = float(np.mean(values)), TOP + ROW * (number + 0.5), COLORS[number % len(COLORS)]
        stderr = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{way}</text>')
        low, high = max(0.0, mean - 2 * stderr), min(1.0, mean + 2 * stderr)
        parts.append(f'<path d="M{x(low):.1f} {y:.1f}H{x(high):.1f}" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(v):.1f}" cy="{y:.1f}" r="3.5" fill="{color}" fill-opacity="0.4"/>' for v in values]
        parts.append(f'<path d="M{x(mean):.1f} {y - 8:.1f}v16" stroke="{color}" stroke-width="3"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Runs, plots, tabulates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--work", type=float, default=1.0, help="factor of every way's steps")
    parser.add_argument("--base", type=pathlib.Path, help="workdir of a base that is there already")
    parser.add_argument("--teacher", type=pathlib.Path, default=ROOT / "runs" / "r1" / "04_zero")
    parser.add_argument("--workdir", type=pathlib.Path, default=ROOT / "runs" / "methods", help="where the runs write")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs" / "methods", help="without its ending")
    flags = parser.parse_args(arguments)
    arguments = [f"teacher={flags.teacher}", f"work={flags.work}"]
    given = ["--config.skip=base", f"--config.stages.base.init={flags.base.resolve()}"] if flags.base else []
    seeds = [int(seed) for seed in flags.seeds.split(",")]
    records = run_all(seeds, flags.workdir.resolve(), ",".join(arguments), given)
    base = flags.base or flags.workdir / f"seed-{seeds[0]}" / records[0]["base"]["folder"]
    marks = {name: read_accuracy(folder) for name, folder in {"base": base, "teacher": flags.teacher}.items()}
    flags.output.with_suffix(".svg").write_text(plot(records, marks))
    page, table = flags.output.with_suffix(".md"), tabulate(records)
    table += "".join(f"| ({name}) | {100 * share:.1f}% |" + " |" * 5 + "\n" for name, share in marks.items())
    put_table(page, table)
    print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
