"""Metrics of a step about the machine: memory of the devices, and the slowest process of each phase."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from r1jax.core import distributed

PHASES = ("time/input", "time/rollout", "time/reward", "time/train")
SLOWEST = "time/slowest_process"


def measure_processes(metrics: Mapping[str, Any]) -> dict[str, int]:
    """Metrics beside those of a step; every process of a run calls this with its own.

    memory/peak_bytes: used at most by any device since the start; memory/limit_bytes: of the smallest device. Left out
    where the devices do not tell, as CPUs. time/slowest_process: number of the process (from 1) whose phases took
    longest in sum, and time/slowest_process/rollout and so on of each; in runs of several processes. A process that
    waits for another in a collective has that time in its own.
    """
    stats = [found for device in jax.local_devices() if (found := device.memory_stats())]
    peak = max((int(found.get("peak_bytes_in_use", 0)) for found in stats), default=0)
    limit = min((int(found.get("bytes_limit", 0)) for found in stats), default=0)
    seconds = [float(metrics.get(phase, 0.0)) for phase in PHASES]
    table = np.stack(distributed.from_all(np.array([peak, limit, *seconds, sum(seconds)], np.float64)))
    own = {}
    if table[:, 0].max():
        own["memory/peak_bytes"] = int(table[:, 0].max())
    if table[:, 1].min():
        own["memory/limit_bytes"] = int(table[:, 1].min())
    if len(table) > 1:
        own[SLOWEST] = int(table[:, -1].argmax()) + 1
        for column, phase in enumerate(PHASES, start=2):
            if table[:, column].max():
                own[f"{SLOWEST}/{phase.removeprefix('time/')}"] = int(table[:, column].argmax()) + 1
    return own
