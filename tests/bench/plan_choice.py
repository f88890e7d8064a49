"""The choice of `python -m r1jax.plan` against layouts drawn from its whole space, each compiled.

    python -m tests.bench.plan_choice --case=0.5b --draws=20

Needs `pip install -e ".[tpu]"`, and minutes a layout; results are kept as those of `plan` are. Printed: of each layout
the memory by the closed form and by the compiler, and predicted seconds of a step; then the choice over the best
of the drawn ones that fit. The choice passes if it fits and takes at most 1.05 of that time.
"""

import argparse
import os
import random
import sys
from collections.abc import Sequence
from typing import NamedTuple

from r1jax.aot.candidates import Job, estimate, list_candidates
from r1jax.aot.planner import GROUP, Planned, choose_different, compile_candidates, rank
from r1jax.compile_check import ENVIRONMENT
from r1jax.plan import HEAD, describe_job, describe_row
from r1jax.runs.chips import read_topology


class Case(NamedTuple):
    """A model on a slice: tokens of a row, an eighth of them the prompt's; prompts of a step."""

    model: str
    topology: str
    length: int
    prompts: int


CASES = {
    "0.5b": Case("Qwen/Qwen2.5-0.5B", "v5e:2x2", 2048, 64),
    "1.5b": Case("Qwen/Qwen2.5-1.5B", "v6e:4x4", 8192, 64),
    "8b": Case("meta-llama/Llama-3.1-8B", "v5p:4x4x2", 8192, 64),
    "30b": Case("Qwen/Qwen3-30B-A3B", "v5p:4x4x4", 8192, 128),
    "671b": Case("deepseek-ai/DeepSeek-V3-Base", "v5p:8x8x8", 8192, 512),
}
BOUND = 1.05  # of the best drawn layout's time


def main(arguments: Sequence[str]) -> int:
    """Compares: 0, or 1 if a drawn layout is better by more than the bound or the choice does not fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="0.5b")
    parser.add_argument("--draws", type=int, default=20, help="layouts drawn")
    parser.add_argument("--compile", type=int, default=3, help="layouts that plan compiles to choose from")
    parser.add_argument("--minutes", type=float, default=20.0, help="for a layout, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    flags = parser.parse_args(arguments)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    case = CASES[flags.case]
    topology, prompt = read_topology(case.topology), case.length // 8
    job = Job(case.model, "grpo", rows=case.prompts * GROUP, prompt=prompt, new=case.length - prompt)
    print(describe_job(job, topology), flush=True)

    def compile_all(planned: Sequence[Planned]) -> list[Planned]:
        found = compile_candidates(job, planned, topology, lambda text: print(text, flush=True), 60 * flags.minutes)
        print(HEAD)
        for one in found:
            closed = f"closed form {one.estimate.bytes / 2**30:.1f} GiB, {one.estimate.total:.3g} s"
            print(f"{describe_row(one, topology, job.rows * job.new)}; {closed}", flush=True)
        return [one for one in found if one.fits]

    chosen = compile_all(choose_different(rank(job, topology.chip, topology.devices, "time"), flags.compile))
    space = list(list_candidates(job, topology.devices))
    drawn = []
    for candidate in random.Random(flags.seed).sample(space, len(space)):
        if len(drawn) < flags.draws and (own := estimate(job, candidate, topology.chip)) is not None:
            drawn.append(Planned(candidate, own))
    others = compile_all(drawn)
    if not chosen:
        print("the choice does not fit")
        return 1
    best = min(chosen, key=lambda one: one.total)
    fastest = min(others, key=lambda one: one.total, default=best)
    ratio = best.total / fastest.total
    print(
        f"choice: {best.candidate.name}: {best.total:.4g} s, {best.bytes / best.estimate.bytes:.3f} of the closed form"
    )
    print(f"best of {len(others)} drawn layouts that fit: {fastest.candidate.name}: {fastest.total:.4g} s")
    print(f"ratio {ratio:.3f} (at most {BOUND})")
    return int(ratio > BOUND)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
