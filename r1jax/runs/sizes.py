"""Sizes of a run for a model and a machine, by a simple rule, for configs that take any model.

The rule knows two things: the number of parameters, from the headers of local files or from the model's name, and the
kind of accelerator, from jax's own environment variable or the device files of the system. It opens no driver and
imports no jax, does not know the accelerator's memory, and assumes one of at least 16 GB. What does not fit is changed
by flags; `python -m r1jax.compile_check` tells before a run.
"""

from __future__ import annotations

import glob
import json
import math
import os
import pathlib
import re
from typing import Any, Literal, NamedTuple

from r1jax.core.errors import UserError
from r1jax.core.tensors.tensor_reader import open_tensors

Kind = Literal["cpu", "gpu", "tpu"]

UNKNOWN = 7_000_000_000  # parameters assumed where neither files nor name tell them
LARGEST_IN_FULL = 1_000_000_000  # parameters; larger models train adapters, for their states need 16 bytes a parameter
DEVICE_FILES: dict[Kind, tuple[str, ...]] = {
    "tpu": ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"),
    "gpu": ("/dev/nvidia[0-9]*", "/dev/kfd"),
}


class Sizes(NamedTuple):
    """Sizes for a model on a machine.

    kind: of devices. parameters: of the model. lora: rank of adapters; 0 trains all parameters. length: tokens of a
    packed row. rows_per_step: such rows of an update. row_tokens: tokens that a device computes gradients of at once.
    new_tokens: limit of a completion. learning_rate: of supervised updates.
    """

    kind: Kind
    parameters: int
    lora: int
    length: int
    rows_per_step: int
    row_tokens: int
    new_tokens: int
    learning_rate: float

    @property
    def model(self) -> dict[str, Any]:
        """Values of a model section: on accelerators bfloat16, and one layer compiled instead of all."""
        if self.kind == "cpu":
            return {}
        return {"dtype": "bfloat16", "scan_layers": True, "remat": "full"}

    @property
    def supervised_train(self) -> dict[str, Any]:
        """Values of the train section of supervised updates."""
        return {
            "rows_per_step": self.rows_per_step,
            "micro_batch_size": min(self.rows_per_step, max(1, self.row_tokens // self.length)),
            "logits_chunk": 0 if self.kind == "cpu" else 512,  # vocabularies of 150,000 tokens
        }

    @property
    def supervised_optimizer(self) -> dict[str, Any]:
        """Values of the optimizer section of supervised updates."""
        return {
            "learning_rate": self.learning_rate,
            "schedule": "cosine",
            "warmup_updates": 3,
            "final_share": 0.1,
            "beta2": 0.95,
        }


def choose_sizes(name: str, lora: int = -1) -> Sizes:
    """Sizes for the MODEL `name` on this machine. lora: rank of adapters; -1 chooses it by the model's size."""
    kind, parameters = find_kind(), count_parameters(name)
    if lora < 0:
        lora = 16 if parameters > LARGEST_IN_FULL else 0
    on_cpu = kind == "cpu"
    row_tokens = 1024 if on_cpu else 8192 if parameters <= 1e9 else 4096 if parameters <= 4e9 else 2048
    return Sizes(
        kind=kind,
        parameters=parameters,
        lora=lora,
        length=512 if on_cpu else 2048,
        rows_per_step=2 if on_cpu else 16,
        row_tokens=row_tokens,
        new_tokens=64 if on_cpu else 512,
        learning_rate=2e-4 if lora else 1e-4 if parameters <= 5e8 else 2e-5,
    )


def find_kind() -> Kind:
    """The kind of device that jax will use here: the first of JAX_PLATFORMS, else by the system's device files."""
    asked = os.environ.get("JAX_PLATFORMS", "").lower().split(",")[0]
    if asked:
        return "tpu" if asked == "tpu" else "cpu" if asked == "cpu" else "gpu"
    for kind, patterns in DEVICE_FILES.items():
        if any(glob.glob(pattern) for pattern in patterns):
            return kind
    return "cpu"


def count_parameters(name: str) -> int:
    """Parameters of a MODEL: of local files by their headers, of a run those of the model that it started from, else by
    a number in the name (`1.5B`, `135M`); `UNKNOWN` if nothing tells them.
    """
    path = pathlib.Path(name)
    if name and path.exists():
        if path.parent.name == "checkpoints":
            path = path.parents[1]
        try:
            if (path / "checkpoints").is_dir():
                return _count_run(path)
            tensors = open_tensors(path)
            return sum(math.prod(tensors.shape(tensor)) for tensor in tensors.names)
        except (UserError, OSError, ValueError):  # it is the run that says what is wrong with these files
            pass
    stem = name.partition("@")[0].rpartition("/")[2].lower()
    found = re.findall(r"(?<![\d.])(\d+(?:\.\d+)?)([bm])(?![a-z])", stem)  # the largest: 30B-A3B has active ones too
    return max((int(float(number) * {"b": 1e9, "m": 1e6}[unit]) for number, unit in found), default=UNKNOWN)


def _count_run(workdir: pathlib.Path) -> int:
    config = json.loads((workdir / "config.json").read_text("utf-8"))
    section = config.get("student") or config.get("model") or {}
    return count_parameters(section.get("name") or section.get("path") or section.get("preset") or "")
