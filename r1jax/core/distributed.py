"""Several processes as one program: start-up, which rows are mine, and arrays from each process's share.

Every process runs the same program and sees the same global batch order; it reads only its own rows. With one process
all of this is the identity, so nothing above asks how many there are.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from r1jax.core.errors import UserError


def start() -> None:
    """Joins the other processes if the environment names a coordinator; nothing to do on one host.

    Explicit: R1JAX_COORDINATOR=host:port, R1JAX_PROCESS_COUNT, R1JAX_PROCESS_ID.
    """
    coordinator = os.environ.get("R1JAX_COORDINATOR")
    if not coordinator:
        return
    try:
        count, index = int(os.environ["R1JAX_PROCESS_COUNT"]), int(os.environ["R1JAX_PROCESS_ID"])
    except (KeyError, ValueError) as error:
        raise UserError(
            f"R1JAX_COORDINATOR={coordinator} needs R1JAX_PROCESS_COUNT and R1JAX_PROCESS_ID as whole numbers ({error})"
        ) from None
    jax.distributed.initialize(coordinator, num_processes=count, process_id=index)


def is_writer() -> bool:
    """True in the one process that writes metrics, samples and reports."""
    return jax.process_index() == 0


def my_rows(count: int, *, index: int | None = None, processes: int | None = None) -> slice:
    """My contiguous rows of a global batch of `count` rows. Raises UserError if they do not divide."""
    processes = jax.process_count() if processes is None else processes
    index = jax.process_index() if index is None else index
    if count % processes:
        raise UserError(f"a global batch of {count} rows does not divide over {processes} processes")
    share = count // processes
    return slice(index * share, (index + 1) * share)


def put_global(tree: Any, shardings: Any) -> Any:
    """Host arrays (the same global array in every process) -> device arrays, each process placing only its shards."""

    def put(array: np.ndarray, sharding: NamedSharding | None) -> jax.Array:
        if sharding is None:
            return jax.numpy.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, shardings, is_leaf=lambda x: x is None)


def fetch(tree: Any) -> Any:
    """Device arrays -> whole numpy arrays in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def wait(name: str) -> None:
    """Until all processes have come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
