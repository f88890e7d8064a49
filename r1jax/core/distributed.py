"""Several processes as one program: start-up, the rows of each process, and arrays from each process's share.

Every process runs the same program and sees the same global batch order; it reads only its own rows. With one process
every function is the identity, so callers need not know the number of processes.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax._src import distributed as _jax_distributed  # its client has no public name
from jax.sharding import NamedSharding

from r1jax.core.errors import UserError, stop_at_signal
from r1jax.core.processes import failures

# Time limits for joining the run and between heartbeats; a process that exceeds one ends the run for all. At the end
# processes wait for each other as long as they live: on a loaded machine one may end minutes after another.
CONNECT_SECONDS, HEARTBEAT_SECONDS, SHUTDOWN_SECONDS = 300, 30, 300


def start() -> None:
    """Joins the other processes of the run, if the environment defines any, in this order:

    - explicit: R1JAX_COORDINATOR=host:port (of process 0), R1JAX_PROCESS_COUNT, R1JAX_PROCESS_ID
    - TPU: R1JAX_CLUSTER=tpu, which the launch scripts set on TPU machines: from the machine's metadata
    - SLURM: a step of several tasks (srun): from SLURM's variables; R1JAX_CLUSTER=none ignores them

    R1JAX_CONNECT_SECONDS limits the wait for the others. Once joined, a process that fails or dies ends all others
    within a minute (processes/failures.py). Raises UserError for a missing or invalid value, and if the others cannot
    be reached in time.
    """
    arguments = find_cluster(os.environ)
    if arguments is None or jax.distributed.is_initialized():
        return
    seconds = _whole(os.environ, "R1JAX_CONNECT_SECONDS", CONNECT_SECONDS)
    coordinator = arguments.get("coordinator_address")
    if coordinator and arguments["process_id"]:
        _reach(coordinator, seconds)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this run did not connect within {seconds} s "
            f"({' '.join(str(error).split())[:300]}); coordinator: {coordinator or 'chosen by the cluster'}"
        ) from None
    state = _jax_distributed.global_state
    if state.num_processes and state.num_processes > 1:
        failures.listen(state.client, state.process_id or 0, state.num_processes)
        if threading.current_thread() is threading.main_thread():  # jax's preemption service would swallow the signal
            signal.signal(signal.SIGTERM, stop_at_signal)


def find_cluster(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of jax.distributed.initialize from the environment; None for a single process."""
    cluster = environment.get("R1JAX_CLUSTER", "")
    if cluster not in ("", "none", "tpu", "slurm"):
        raise UserError(f"R1JAX_CLUSTER must be tpu, slurm or none, got {cluster!r}")
    if coordinator := environment.get("R1JAX_COORDINATOR"):
        keys = ("R1JAX_PROCESS_COUNT", "R1JAX_PROCESS_ID")
        if not all(environment.get(key, "").isdigit() for key in keys):
            given = ", ".join(f"{key}={environment.get(key, '')}" for key in keys)
            raise UserError(f"R1JAX_COORDINATOR={coordinator} needs {' and '.join(keys)} as whole numbers, got {given}")
        count, index = (int(environment[key]) for key in keys)
        if index >= count or not re.fullmatch(r".+:\d+", coordinator):
            raise UserError(
                f"R1JAX_COORDINATOR must be host:port and R1JAX_PROCESS_ID less than R1JAX_PROCESS_COUNT, "
                f"got {coordinator}, {index} and {count}"
            )
        return {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    if alone := [key for key in ("R1JAX_PROCESS_COUNT", "R1JAX_PROCESS_ID") if environment.get(key)]:
        raise UserError(
            f"{' and '.join(alone)} need R1JAX_COORDINATOR=host:port of process 0 too; without it each process would "
            "train a model of its own"
        )
    if cluster == "tpu":
        return {}
    if cluster != "none" and _whole(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return {"cluster_detection_method": "slurm", **_slurm_devices(environment)}
    return None


def _slurm_devices(environment: Mapping[str, str]) -> dict[str, Any]:
    """GPUs of this task of a SLURM step as jax.distributed's `local_device_ids`.

    From the tasks of its node and the GPUs that it sees: its own of all (one task a GPU), all of them (one task a
    node), or the only one that it sees.

    Empty where SLURM does not say how many GPUs there are (CPUs). Raises UserError for any other shape.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    if not visible or "MIG" in visible:
        return {}
    gpus = len(visible.split(","))
    tasks = _whole(environment, "SLURM_NTASKS_PER_NODE", 0)
    if gpus == 1:
        return {"local_device_ids": [0]}
    if tasks == gpus:
        return {"local_device_ids": [_whole(environment, "SLURM_LOCALID", 0)]}
    if tasks == 1:
        return {"local_device_ids": list(range(gpus))}
    if tasks == 0:
        return {}
    raise UserError(
        f"{tasks} SLURM tasks share the {gpus} GPUs of a node; --ntasks-per-node must be {gpus} (one task a GPU) or 1"
    )


def _whole(environment: Mapping[str, str], key: str, default: int) -> int:
    if not (text := environment.get(key, str(default))).isdigit():
        raise UserError(f"{key} must be a whole number, got {text!r}")
    return int(text)


def _reach(coordinator: str, seconds: int) -> None:
    """Waits for the coordinator's port to open, up to `seconds`: on failure jax itself would end the process without a
    message.
    """
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=max(1.0, end - time.monotonic())).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() >= end:
                raise UserError(
                    f"no coordinator answers at R1JAX_COORDINATOR={coordinator} within {seconds} s ({error}); it must "
                    "be the address of process 0, reachable from here"
                ) from None
        time.sleep(min(1.0, max(0.0, end - time.monotonic())))


def wait(name: str) -> None:
    """Barrier: waits until all processes have called it."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def is_writer() -> bool:
    """Whether this process writes metrics, samples and reports (one process of a run does)."""
    return jax.process_index() == 0


def my_share(count: int, *, index: int | None = None, processes: int | None = None) -> slice:
    """This process's contiguous share of `count` items of host work; shares may differ in size."""
    processes = jax.process_count() if processes is None else processes
    index = jax.process_index() if index is None else index
    return slice(index * count // processes, (index + 1) * count // processes)


def join_shares(mine: np.ndarray, count: int) -> np.ndarray:
    """All `count` items [count, ...] from each process's share [items, ...], bit for bit, in every process."""
    processes = jax.process_count()
    if processes == 1:
        return mine
    from jax.experimental import multihost_utils

    padded = np.zeros((-(-count // processes), *mine.shape[1:]), mine.dtype)
    padded[: len(mine)] = mine
    gathered = multihost_utils.process_allgather(_to_bytes(padded), tiled=False)
    shares = [_from_bytes(padded, share) for share in gathered]
    sizes = [my_share(count, index=index, processes=processes) for index in range(processes)]
    return np.concatenate([share[: size.stop - size.start] for share, size in zip(shares, sizes, strict=True)])


def put_global(tree: Any, shardings: Any) -> Any:
    """Host arrays (the same global array in every process) as device arrays; each process places only its shards."""

    def put(array: np.ndarray, sharding: NamedSharding | None) -> jax.Array:
        if sharding is None:
            return jax.numpy.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, shardings, is_leaf=lambda x: x is None)


def fetch(tree: Any) -> Any:
    """Device arrays as whole numpy arrays in every process. What every device holds whole is read without a collective,
    of which each other array costs one.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def read(leaf: Any) -> Any:
        is_everywhere = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and leaf.is_fully_replicated
        return leaf.addressable_data(0) if is_everywhere else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.device_get(jax.tree.map(read, tree))


def from_first(tree: Any) -> Any:
    """Process 0's numpy arrays, bit for bit, in every process. Values that depend on clocks or timeouts may differ
    between processes, and processes that decide by different values would run different programs.
    """
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    sent = multihost_utils.broadcast_one_to_all(jax.tree.map(_to_bytes, tree))
    return jax.tree.map(_from_bytes, tree, sent)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; every process must call it."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def from_all(value: np.ndarray) -> list[np.ndarray]:
    """Each process's numpy array, of one shape, bit for bit, in every process, in the order of the processes."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    return [_from_bytes(value, sent) for sent in multihost_utils.process_allgather(_to_bytes(value), tiled=False)]


def flag_from_first(flag: bool) -> bool:
    """Process 0's flag in every process."""
    return bool(from_first(np.asarray(flag)))


def text_from_first(text: str) -> str:
    """Process 0's text in every process."""
    if jax.process_count() == 1:
        return text
    own = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    size = int(from_first(np.int64(len(own))))
    sent = np.zeros(size, np.uint8)
    sent[: len(own)] = own[:size]
    return from_first(sent).tobytes().decode("utf-8", "surrogatepass")


def texts_from_all(text: str) -> list[str]:
    """Each process's text in every process, in the order of the processes."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    sizes = [int(size) for size in from_all(np.array(len(own)))]
    padded = np.zeros(max(sizes), np.uint8)
    padded[: len(own)] = own
    sent = from_all(padded) if max(sizes) else [padded] * len(sizes)
    return [part[:size].tobytes().decode("utf-8", "surrogatepass") for part, size in zip(sent, sizes, strict=True)]


def _to_bytes(array: np.ndarray) -> np.ndarray:
    """The array as bytes for transfer: jax would narrow float64."""
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)


def _from_bytes(like: np.ndarray, sent: Any) -> np.ndarray:
    return np.frombuffer(np.asarray(sent).tobytes(), like.dtype).reshape(like.shape)
