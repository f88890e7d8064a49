"""Memory of a device against the sizes that a run asks for, and errors of memory in one line.

A size with a digit too many would otherwise fill the memory for minutes, until the system ends the process or XLA fails
with an internal error.
"""

from __future__ import annotations

import os
import resource

import jax

from r1jax.core.errors import UserError

_SHORTAGE = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


def find_memory() -> int:
    """Bytes of memory of one device; on CPUs those that this process may have."""
    device = jax.local_devices()[0]
    known = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    if known:
        return int(known)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return total if limit in (resource.RLIM_INFINITY, -1) else min(total, limit)


def check_memory(needed: int, what: str, cure: str) -> None:
    """Raises UserError if `needed` bytes exceed the whole memory of a device. what: needs them; cure: keys to lower."""
    there = find_memory()
    if needed > there:
        raise UserError(f"{what} needs {needed / 2**30:,.0f} GiB of {there / 2**30:,.0f} GiB of memory: lower {cure}")


def describe_shortage(error: BaseException) -> str:
    """One line of what to do about an error of memory; "" for any other error."""
    if not isinstance(error, MemoryError) and not any(word in str(error) for word in _SHORTAGE):
        return ""
    return (
        "the memory does not suffice: use smaller batches (config.train.micro_batch_size, config.rollout.slots, "
        "--batch_size), shorter texts (config.data.length, max_new_tokens), config.model.remat=full, or more devices "
        f"({' '.join(str(error).split())[:160] or type(error).__name__})"
    )
