"""How long a training step waits for its batch, as a share of the step, as JSON lines.

The step is a sleep (what the host does while an accelerator computes) or, with --busy, a matrix product on all cores
(what a step on CPU is, which competes with the thread that reads ahead). Documents are drawn with lengths like GSM8K's
(--mean tokens), so no file is needed.

    python tests/bench/data_wait.py [--rows 8 --length 1024 --mean 195 --documents 7000 --steps 50 --busy]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from r1jax.data.examples import Example
from r1jax.data.sequences import PackingConfig, SequenceLoader, utilisation


def draw(count: int, mean: int, length: int) -> list[Example]:
    """Documents with log-normal lengths, each at most a row."""
    generator = np.random.default_rng(0)
    sizes = (generator.lognormal(-0.09, 0.42, count) * mean).clip(2, length).astype(int)
    ids = [generator.integers(0, 50_000, size + 1, np.int32) for size in sizes]
    return [Example(row[:-1], row[1:], np.ones(len(row) - 1, np.float32)) for row in ids]


def compute(seconds: float) -> None:
    """Keeps all cores busy for about so long."""
    end, matrix = time.perf_counter() + seconds, np.ones((1024, 1024), np.float32)
    while time.perf_counter() < end:
        matrix @ matrix


def main() -> None:
    """One line for making batches alone, and one for each step time."""
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = {"rows": 8, "length": 1024, "mean": 195, "documents": 7000, "steps": 50, "read_ahead": 4}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--step_seconds", type=float, nargs="*", default=[0.02, 0.1, 0.5])
    parser.add_argument("--busy", action="store_true")
    args = parser.parse_args()
    source = draw(args.documents, args.mean, args.length)
    make = lambda ahead: SequenceLoader([source], args.rows, PackingConfig(args.length, read_ahead=ahead))
    loader, begin = make(0), time.perf_counter()
    used = [utilisation(next(loader)) for _ in range(args.steps)]
    seconds = (time.perf_counter() - begin) / args.steps
    loader.close()
    print(json.dumps({"batch_ms": round(1e3 * seconds, 2), "utilisation": round(float(np.mean(used)), 4)}))
    for step in args.step_seconds:
        loader = make(args.read_ahead)
        next(loader)
        waits, begin = [], time.perf_counter()
        for _ in range(args.steps):
            (compute if args.busy else time.sleep)(step)
            start = time.perf_counter()
            next(loader)
            waits.append(time.perf_counter() - start)
        share = sum(waits) / (time.perf_counter() - begin)
        loader.close()
        figures = {"step_s": step, "busy": args.busy, "wait_share": round(share, 5), "longest_ms": 1e3 * max(waits)}
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
