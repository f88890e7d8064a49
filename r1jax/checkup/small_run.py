"""A small GRPO run on all devices, twice: sampler against trainer, one seed twice, and its step's time and memory
against what the compiler's figures of its programs allow.

The model is random and small, with a tokenizer of bytes; prompts are sums; the reward pays for vowels, so that groups
have spread. Nothing is written.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from r1jax.checkup.findings import Finding
from r1jax.stages.grpo import GRPORun
from r1jax.stages.registry import resolve_run

DIFFERENCE = "sampling/sampling_logp_difference/mean"
BOUNDS = {"cpu": 1e-5, "other": 2e-2}  # of the mean |difference| of log-probs in float32; accelerators multiply in bf16
STEPS = 2  # the first compiles, the second is timed
TIMED = ("time/", "step_time", "tokens_per_second", "mfu")  # metrics that clocks decide
MEMORY_SLACK = 1.1, 2**28  # of the predicted peak, and bytes for programs and buffers of the runtime
CURES = {
    "sampler": "policy gradients are wrong where sampler and trainer differ: compare the versions with those of "
    "docs/stability.md, unset XLA_FLAGS and LIBTPU_INIT_ARGS, and report it with this file",
    "bits": "on GPUs set XLA_FLAGS=--xla_gpu_deterministic_ops=true and run the doctor again; runs without equal bits "
    "train as well, but do not repeat",
    "memory": "close other programs on the devices; if none runs, report it with this file: the figures of "
    "compile_check are too small for this machine",
    "time": "a step cannot be faster than its devices: the measured rates are too small; run the doctor on an idle "
    "machine",
}


@dataclasses.dataclass(frozen=True)
class Expected:
    """A step's figures according to the compiler. seconds: of each phase at best, at the rates measured here; peak:
    bytes on a device of the largest program with all that the run keeps there (0: the compiler does not tell).
    """

    seconds: Mapping[str, float]
    peak: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A small run. rows: metrics of each step. params: on this process's devices, as bytes by shard. peak: bytes that
    any of these devices used at most until the run's end (None: they do not tell).
    """

    rows: list[dict[str, Any]]
    params: list[bytes]
    peak: int | None = None


def vowels_reward(completions: list[str], **_: object) -> list[float]:
    """Share of vowels in each completion."""
    return [sum(letter in "aeiou" for letter in text.lower()) / max(1, len(text)) for text in completions]


def make_settings(*, quick: bool) -> Any:
    """Checked settings of the run, for the devices at hand: a toy on CPUs and with `quick`, else 16 M parameters."""
    count = jax.device_count()
    prompts = count * max(1, -(-4 // count))  # at least 4, a multiple of the devices
    small = quick or jax.default_backend() == "cpu"
    sizes = {} if small else dict(hidden_size=512, intermediate_size=1536, num_layers=8, num_heads=8, head_dim=64)
    sizes |= {"vocab_size": 512}
    config = {
        "stage": "grpo",
        "steps": STEPS,
        "model": {"preset": "tiny_llama", "sizes": sizes},
        "mesh": {"data": -1},
        "data": {"source": "addition", "template": "plain", "eval_problems": 0},
        "rollout": {
            "prompts_per_step": prompts,
            "group_size": 4,
            "slots": 4 * prompts,
            "prefill_batch": prompts,
            "max_prompt_tokens": 64,
            "max_new_tokens": 16 if small else 128,
            "ignore_stop": True,  # completions of full length, which the compiler's figures assume
            "cache_pieces": 1,
        },
        "train": {"micro_batch_size": 4, "completions_per_row": 4},
        "rewards": {"vowels": {"function": f"{__name__}:vowels_reward", "weight": 1.0}},
        "optimizer": {"learning_rate": 1e-3},
    }
    return resolve_run(ConfigDict(config)).settings


def run_once(settings: Any) -> Outcome:
    """All steps of a run from its beginning, under the mesh in use."""
    run = GRPORun(settings, pathlib.Path(os.devnull))
    rows = [run.step(step)[0] for step in range(1, settings.steps + 1)]
    leaves = jax.tree.leaves(run.state.params)
    params = [np.asarray(part.data).tobytes() for leaf in leaves for part in leaf.addressable_shards]
    return Outcome(rows, params, find_peak())


def check_sampler(outcome: Outcome) -> Finding:
    """The sampler's log-probs of its tokens against the trainer's, for the same weights."""
    bound = BOUNDS.get(jax.default_backend(), BOUNDS["other"])
    found = float(np.max([row[DIFFERENCE] for row in outcome.rows]))
    figures = {"mean_difference": found, "bound": bound}
    words = f"the sampler's log-probs differ from the trainer's by {found:.1e} on average (bound {bound:.0e})"
    if not found <= bound:
        return Finding("sampler", "wrong", words, CURES["sampler"], figures)
    return Finding("sampler", "right", words, figures=figures)


def check_bits(one: Outcome, other: Outcome) -> Finding:
    """Two runs of one seed against each other: metrics without timings, and all parameters."""
    flags = os.environ.get("XLA_FLAGS", "")
    plain = lambda row: {key: value for key, value in row.items() if not any(part in key for part in TIMED)}
    names = sorted({key for a, b in zip(one.rows, other.rows, strict=True) for key in plain(a) if a[key] != b.get(key)})
    differing = sum(a != b for a, b in zip(one.params, other.params, strict=True))
    figures = {"differing_metrics": names, "differing_arrays": differing, "arrays": len(one.params), "XLA_FLAGS": flags}
    shown = f"XLA_FLAGS={flags}" if flags else "without XLA_FLAGS"
    if names or differing:
        words = f"one seed, twice, gives different bits: {differing} of {len(one.params)} arrays of parameters"
        seen = f" and {', '.join(names[:3])}" if names else ""
        return Finding("bits", "wrong", f"{words}{seen} ({shown})", CURES["bits"], figures)
    return Finding(
        "bits", "right", f"one seed, twice, gives the same bits after {STEPS} steps ({shown})", figures=figures
    )


def check_step(outcome: Outcome, expect: Callable[[], Expected]) -> Finding:
    """The time and memory of the last step against the compiler's figures.

    Wrong where a phase is faster than its devices allow, or the devices used more memory than predicted.
    """
    expected, row, peak = expect(), outcome.rows[-1], outcome.peak
    measured = {"sampling": row["time/rollout"], "updating": row["time/train"]}
    phases = {name: (seconds, expected.seconds.get(name, 0.0)) for name, seconds in measured.items()}
    figures = {
        "phases": {name: {"seconds": found, "bound_seconds": bound} for name, (found, bound) in phases.items()},
        "peak_bytes": peak,
        "predicted_peak_bytes": expected.peak,
    }
    times = ", ".join(f"{name} {found:.3g} s (at best {bound:.2g})" for name, (found, bound) in phases.items())
    if peak:
        memory = f"memory {peak / 2**20:,.0f} MiB (predicted {expected.peak / 2**20:,.0f})"
    else:
        memory = f"memory predicted {expected.peak / 2**20:,.0f} MiB, which the devices do not tell"
    text = f"{times}; {memory}"
    if peak and peak > MEMORY_SLACK[0] * expected.peak + MEMORY_SLACK[1]:
        return Finding("step", "wrong", f"more memory than predicted: {text}", CURES["memory"], figures)
    if fast := [name for name, (found, bound) in phases.items() if found < 0.8 * bound]:
        return Finding("step", "wrong", f"{fast[0]} is faster than possible: {text}", CURES["time"], figures)
    return Finding("step", "right", text, figures=figures)


def find_peak() -> int | None:
    """Bytes used at most by any device of this process; None where its devices do not tell."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((int(found["peak_bytes_in_use"]) for found in stats if "peak_bytes_in_use" in found), default=None)
