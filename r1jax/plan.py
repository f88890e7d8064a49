"""Finds a layout that fits: mesh, micro-batch, slots, remat and offload for a model, before any chip is rented.

  python -m r1jax.plan --model=Qwen/Qwen3-8B --stage=grpo --topology=v6e:2x4 --length=8192 --output=mine.py
  python -m r1jax.plan --model=qwen2.5_7b --stage=sft --topology=h100:8 --length=8192

Every layout of the space is judged by a closed form of memory and time, and the best few are compiled for the TPU
topology, each in a process of its own, as compile_check does. The table shows what fits, the memory of the largest
program, predicted seconds of a step by phase, and tokens a second and chip; --output writes the config of the best.
Compiling takes minutes for each layout; results are kept and found again. GPUs (h100:8, h200:8, b200:8, a100:8, t4:1)
and machines without libtpu have the closed form alone, which is about a tenth off in memory (docs/plan.md).

--length is that of a whole row: for grpo a prompt of up to --prompt_length and a completion.
"""

import importlib.util
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from r1jax.compile_check import ENVIRONMENT
from r1jax.core.commands import run_command
from r1jax.core.errors import UserError
from r1jax.core.outputs.ownership import check_output, write_output
from r1jax.runs.chips import CHIPS, GPUS, Chip, Topology, read_topology

STAGES = ("grpo", "sft", "distill")  # distill: of traces, whose student is trained as sft does
MARK = "Made by `python -m r1jax.plan`"


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (program name first): 0, 1 if nothing fits, 2 for a user's mistake."""
    values, fits = define_flags(), True

    def search(_: list[str]) -> None:
        nonlocal fits
        fits = plan(values)

    code = run_command(__doc__, values, argv[1:], search, keeps_programs=False)
    return code or int(not fits)


def define_flags() -> flags.FlagValues:
    """The flags of this command, separate from absl's global ones, so that importing this module defines none."""
    values = flags.FlagValues()
    texts = {
        "model": "A hub name or a shape of models/families/presets.py, as in Qwen/Qwen3-8B or qwen3_8b.",
        "topology": f"A TPU slice (v5p:4x4x4, v6e-16; {', '.join(CHIPS)}) or GPUs (h100:8).",
        "output": "A config file to write with the best layout.",
    }
    for name, text in texts.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    flags.DEFINE_enum("stage", "grpo", STAGES, "What is trained.", flag_values=values)
    goal = "Whether the fastest layout is the best, or the one that needs the least memory."
    flags.DEFINE_enum("objective", "time", ("time", "memory"), goal, flag_values=values)
    numbers = {
        "length": (2048, "Tokens of a row: of prompt and completion together for grpo."),
        "prompt_length": (0, "Tokens of a prompt, at most. Default: an eighth of --length."),
        "prompts_per_step": (64, "Prompts of a step, each with 16 completions; for sft and distill rows of a step."),
        "compile": (3, "Layouts to compile; 0 trusts the closed form."),
        "minutes": (20, "For the compilation of a layout, at most."),
        "shown": (8, "Rows of the table without compilation."),
    }
    for name, (default, text) in numbers.items():
        flags.DEFINE_integer(name, default, text, lower_bound=0, flag_values=values)
    return values


def plan(values: Any) -> bool:
    """Prints the table, writes the config; returns whether a layout fits."""
    if not values.model or not values.topology:
        raise UserError("--model and --topology are missing, as in --model=Qwen/Qwen3-8B --topology=v6e:2x4")
    topology, compiles = read_machine(values.topology)
    if values.output:
        check_output(pathlib.Path(values.output), lambda path: MARK in path.read_text("utf-8", "replace"))
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from r1jax.aot.candidates import Job
    from r1jax.aot.planner import GROUP, choose_different, compile_candidates, rank, render_config

    prompt = (values.prompt_length or values.length // 8) if values.stage == "grpo" else 0
    if not 0 <= prompt < values.length or not values.prompts_per_step:
        raise UserError("--length must exceed --prompt_length, and --prompts_per_step be at least 1")
    rows = values.prompts_per_step * (GROUP if values.stage == "grpo" else 1)
    stage = "grpo" if values.stage == "grpo" else "sft"
    job = Job(values.model, stage, rows=rows, prompt=prompt, new=values.length - prompt)
    ranked = rank(job, topology.chip, topology.devices, values.objective)
    tokens = rows * (job.new if stage == "grpo" else values.length)
    print(describe_job(job, topology))
    print(HEAD)
    for one in ranked[: max(1, values.shown)]:
        print(describe_row(one, topology, tokens), flush=True)
    best = ranked[0]
    if compiles and values.compile:
        chosen = choose_different(ranked, values.compile)
        print(f"\ncompiling {len(chosen)} of {len(ranked)} layouts:", flush=True)
        say = lambda text: print(f"  {text}", flush=True)
        found = compile_candidates(job, chosen, topology, say, 60.0 * values.minutes)
        print(f"\n{HEAD}")
        for one in found:
            print(describe_row(one, topology, tokens), flush=True)
        fitting = [one for one in found if one.fits]
        if not fitting:
            cure = "more chips, a shorter --length, or --objective=memory" if found else "the lines above say why"
            print(f"none of the {len(chosen)} layouts {'fits' if found else 'compiled'}: {cure}")
            return False
        best = min(fitting, key=lambda one: one.bytes if values.objective == "memory" else one.total)
    elif best.bytes > topology.chip.hbm_bytes:
        print("nothing fits by the closed form: more chips, or a shorter --length")
        return False
    print(f"\nbest: {best.candidate.name}" + ("" if best.compiled else "; by the closed form, not compiled"))
    if values.output:
        write_output({pathlib.Path(values.output): render_config(job, best, topology.name)})
        print(f"python -m r1jax.train --config={values.output}")
    return True


HEAD = f"{'HBM GiB':>8}  {'fits':<9}{'s a step':>10}{'tokens/s/chip':>15}  layout"


def describe_job(job: Any, topology: Topology) -> str:
    """A line with the sizes of the job and of a device."""
    return (
        f"{job.model}, {job.count / 1e9:.3g} B parameters; {job.stage}: {job.rows:,} rows of {job.prompt} + {job.new} "
        f"tokens a step; {topology.name}: {topology.devices} devices of {topology.chip.hbm_bytes / 2**30:.1f} GiB"
    )


def describe_row(planned: Any, topology: Topology, tokens: int) -> str:
    """A row under HEAD; fits: yes or NO by the compiler, `likely` by the closed form."""
    fits = {True: "yes", False: "NO", None: "likely" if planned.bytes <= topology.chip.hbm_bytes else "no"}[
        planned.fits
    ]
    parts = ", ".join(f"{name} {seconds:.3g}" for name, seconds in planned.seconds.items())
    return (
        f"{planned.bytes / 2**30:>8.1f}  {fits:<9}{planned.total:>10.3g}"
        f"{tokens / planned.total / topology.chips:>15,.0f}  {planned.candidate.name} ({parts} s)"
    )


def read_machine(text: str) -> tuple[Topology, bool]:
    """The devices of --topology, and whether a compiler for them is here: TPU slices with libtpu."""
    name, _, count = text.strip().lower().partition(":")
    gpus: dict[str, Chip] = {chip.name: chip for chip in GPUS.values()}
    if name in gpus:
        if not count.isdigit() or not 1 <= int(count) <= 100_000:
            raise UserError(f"--topology={text}: the number of GPUs is missing, as in {name}:8")
        return Topology(gpus[name], (int(count),)), False
    return read_topology(text), importlib.util.find_spec("libtpu") is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv))
