"""A search for the layout of a job: all candidates by the closed form, the best few by the compiler.

Each candidate is a config, as a user would write it, and each compilation is `compile_check` on it in a process of its
own, under a limit of memory. Results are kept by content (config, topology, versions, code) and found again in seconds.
On GPUs, and without libtpu, the closed form alone decides.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from r1jax.aot.candidates import DISPATCH, SPARE, Candidate, Estimate, Job, estimate, list_candidates
from r1jax.aot.compiled import find_versions
from r1jax.core.atomic_file import replace_file
from r1jax.core.errors import UserError
from r1jax.core.processes.agreement import digest_code, digest_items
from r1jax.core.startup.program_cache import find_user_cache
from r1jax.core.startup.voice import activity
from r1jax.runs.chips import Chip, Topology

Objective = str  # "time" or "memory"
GROUP = 16  # completions of a prompt
LIMIT_SHARE = 0.8  # of this machine's memory that a compilation may take


@dataclasses.dataclass(frozen=True)
class Planned:
    """A candidate with its estimate and, if it was compiled, what compile_check says of it."""

    candidate: Candidate
    estimate: Estimate
    compiled: dict[str, Any] | None = None

    @property
    def bytes(self) -> float:
        """Memory of the largest program on a device."""
        if self.compiled is None:
            return self.estimate.bytes
        return max(program["hbm_bytes"]["peak"] for program in self.compiled["programs"].values())

    @property
    def fits(self) -> bool | None:
        """Whether the compiler says that every program fits; None if it was not asked."""
        return None if self.compiled is None else all(p["fits"] for p in self.compiled["programs"].values())

    @property
    def seconds(self) -> dict[str, float]:
        """Predicted seconds of a step by phase: of the compiled programs, else by the closed form."""
        phases = (self.compiled or {}).get("phases")
        return {n: p["predicted_seconds"] for n, p in phases.items()} if phases else self.estimate.seconds

    @property
    def total(self) -> float:
        """Predicted seconds of a step."""
        return sum(self.seconds.values())


def rank(job: Job, chip: Chip, devices: int, objective: Objective) -> list[Planned]:
    """Candidates that fit by the closed form, the best first; the smallest ones if none does."""
    found = [(c, e) for c in list_candidates(job, devices) if (e := estimate(job, c, chip)) is not None]
    if not found:
        raise UserError(f"no mesh of {devices} devices divides the sizes of {job.model} and {job.rows} rows a step")
    fitting = [Planned(c, e) for c, e in found if e.bytes <= SPARE * chip.hbm_bytes]
    if not fitting:
        return [Planned(c, e) for c, e in sorted(found, key=lambda pair: pair[1].bytes)]
    key = (lambda p: p.estimate.bytes) if objective == "memory" else (lambda p: p.estimate.total)
    return sorted(fitting, key=key)


def choose_different(ranked: Iterable[Planned], count: int) -> list[Planned]:
    """The best of each mesh and remat, at most `count`: neighbours in micro-batch and offload are much alike."""
    chosen: dict[tuple, Planned] = {}
    for planned in ranked:
        c = planned.candidate
        chosen.setdefault((c.data, c.fsdp, c.expert, c.tensor, c.remat), planned)
        if len(chosen) == count:
            break
    return list(chosen.values())


def compile_candidates(
    job: Job, planned: Sequence[Planned], topology: Topology, say: Callable[[str], None], seconds: float
) -> list[Planned]:
    """The candidates with the compiler's figures; one that does not compile in time or memory is left out, with a line.

    seconds: for each.
    """
    done, took = [], list[float]()
    for number, one in enumerate(planned, start=1):
        text = render_config(job, one, topology.name)
        file = find_user_cache() / "plans" / f"{_digest(text, topology)}.json"
        if file.is_file():
            say(f"{number}: {one.candidate.name}: compiled before")
        else:
            left = (len(planned) - number + 1) * sum(took) / len(took) if took else 0.0
            say(f"{number}: {one.candidate.name}: compiling" + (f", {left / 60:.0f} minutes left" if took else ""))
            begin = time.monotonic()
            with activity(f"compiling {one.candidate.name}"):
                fault = _compile(text, topology, file, seconds)
            took.append(time.monotonic() - begin)
            if fault:
                say(f"{number}: left out: {fault}")
                continue
        done.append(dataclasses.replace(one, compiled=json.loads(file.read_text("utf-8"))))
    return done


def _compile(text: str, topology: Topology, output: pathlib.Path, seconds: float) -> str:
    """Runs compile_check on a config; "" or why there is no result."""
    with tempfile.TemporaryDirectory(prefix="r1jax-plan-") as folder:
        config, result = pathlib.Path(folder) / "candidate.py", pathlib.Path(folder) / "result.json"
        config.write_text(text)
        command = [sys.executable, "-m", "r1jax.compile_check", f"--config={config}", f"--topology={topology.name}"]
        command += [f"--output={result}", f"--num_slices={topology.slices}"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, preexec_fn=_limit_memory, check=False
            )
        except subprocess.TimeoutExpired:
            return f"not compiled within {seconds:.0f} s"
        if not result.is_file():
            return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]
        output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(output, result.read_text("utf-8"))
        return ""


def _limit_memory() -> None:
    """Bounds the data of the process that is about to start, so that a compilation cannot take the machine down."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    resource.setrlimit(resource.RLIMIT_DATA, (int(LIMIT_SHARE * total),) * 2)


def _digest(text: str, topology: Topology) -> str:
    """Name of a result: all that it depends on."""
    return digest_items([text, topology.name, topology.slices, find_versions(), digest_code({})])


# --- The config of a candidate ---


def render_config(job: Job, planned: Planned, where: str) -> str:
    """A config file of the candidate: everything that the layout chose; the data is left to a flag."""
    c = planned.candidate
    name = {"name": job.model} if "/" in job.model else {"preset": job.model}
    model = {**name, "dtype": "bfloat16", "scan_layers": True, "remat": c.remat}
    if job.experts > 1:
        model |= {"buffer_factor": 1.25, "dispatch_tokens": DISPATCH}
    mesh = {axis: getattr(c, axis) for axis in ("data", "fsdp", "expert", "tensor")}
    values: dict[str, Any] = {"stage": job.stage, "steps": 100, "model": model, "mesh": mesh}
    if job.stage == "sft":
        values["data"] = {"sources": {"rows": {"path": "ROWS.jsonl"}}, "length": job.new}
        values["train"] = {"rows_per_step": job.rows, "micro_batch_size": c.micro_batch, "logits_chunk": job.chunk}
    else:
        values["data"] = {"source": "jsonl", "path": "PROMPTS.jsonl", "template": "r1", "long_prompts": "skip"}
        values["rollout"] = {
            "prompts_per_step": job.rows // GROUP,
            "group_size": GROUP,
            "max_prompt_tokens": job.prompt,
            "max_new_tokens": job.new,
            "slots": c.slots * c.parts,
            "prefill_batch": c.parts,
            "cache_pieces": 1,
        }
        values["rewards"] = {"answer_reward": 1.0, "r1_format_reward": 0.2}
        train = {"micro_batch_size": c.micro_batch, "completions_per_row": 1, "share_prompts": False}
        values["train"] = {**train, "logits_chunk": job.chunk, "old_logprobs": "sampler"}
        values["eval"] = {"name": "held_out", "strict": ("answer_reward",), "format": "r1_format_reward"}
    values["optimizer"] = {"learning_rate": 1e-6 if job.stage == "grpo" else 2e-5, "offload": c.offload}
    lines = "\n".join(f"    config.{key} = {_spell(value)}" for key, value in values.items())
    data = "config.data.path" if job.stage == "grpo" else "config.data.sources.rows.path"
    return f'''"""{job.stage.upper()} of {job.model} on {where}: {c.name}.

    python -m r1jax.train --config=FILE --{data}=MINE.jsonl

Made by `python -m r1jax.plan`: the layout is chosen for this slice, the rest are usual values to change.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The run."""
    config = ConfigDict()
{lines}
    return config
'''


def _spell(value: Any) -> str:
    return f"ConfigDict({value!r})" if isinstance(value, dict) else repr(value)
