"""My rows, placement of host arrays, and start-up, which is proven by two real processes."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from r1jax.core import distributed
from r1jax.core.errors import UserError
from r1jax.core.sharding import MeshConfig, make_mesh, replicated, sharding, use_mesh
from tests.environment import make_xla_flags

ROOT = Path(__file__).parents[2]
TWO_PROCESSES = """
import sys
import jax, numpy as np
from r1jax.core import distributed
from r1jax.core.sharding import MeshConfig, make_mesh, replicated, sharding, use_mesh
distributed.start()
assert jax.process_count() == 2 and jax.device_count() == 4
assert distributed.is_writer() == (jax.process_index() == 0)
mine = distributed.my_share(8)
batch = np.arange(24.0).reshape(8, 3)
with use_mesh(make_mesh(MeshConfig(data=4))):
    placed = distributed.put_global(batch, sharding(("batch", None), batch.shape))
    held = np.concatenate([np.asarray(s.data) for s in placed.addressable_shards])
    assert (held == batch[mine]).all()
    total = jax.jit(lambda x: x.sum(0), out_shardings=replicated())(placed)
    whole = distributed.fetch({"batch": placed, "total": total})
assert (whole["batch"] == batch).all() and (whole["total"] == batch.sum(0)).all()
mine_alone = {"a": np.arange(3.0) / 7 + jax.process_index(), "b": np.array([[jax.process_index() == 0, True]])}
agreed = distributed.from_first(mine_alone)
assert (agreed["a"] == np.arange(3.0) / 7).all() and (agreed["b"] == [[True, True]]).all()
assert agreed["a"].dtype == np.float64 and agreed["b"].dtype == bool
for count in (0, 1, 7, 8):
    whole = np.arange(2.0 * count).reshape(count, 2) / 7
    np.testing.assert_array_equal(distributed.join_shares(whole[distributed.my_share(count)], count), whole)
distributed.wait("the end")
print("process", jax.process_index(), "rows", mine.start, mine.stop)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start_two(program: str, *args: str) -> list[subprocess.Popen]:
    """Two processes of one or two devices each that run `program` together."""
    shared = {**os.environ, "R1JAX_COORDINATOR": f"localhost:{free_port()}", "R1JAX_PROCESS_COUNT": "2"}
    devices = 1 if args else 2
    shared |= {"XLA_FLAGS": make_xla_flags(devices), "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, *args],
            env={**shared, "R1JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def test_rows_of_all_processes_are_the_batch() -> None:
    rows = np.arange(12)
    parts = [rows[distributed.my_share(12, index=i, processes=3)] for i in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), rows)
    assert distributed.my_share(12) == slice(0, 12)


def test_shares_of_all_processes_are_the_whole() -> None:
    for count in (0, 1, 2, 7, 12):
        parts = [range(count)[distributed.my_share(count, index=i, processes=3)] for i in range(3)]
        assert [item for part in parts for item in part] == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert distributed.my_share(7) == slice(0, 7)


def test_host_arrays_are_placed_by_their_shardings_and_come_back_whole() -> None:
    tree = {"a": np.arange(16.0, dtype=np.float32).reshape(8, 2), "b": [np.arange(3)]}
    with use_mesh(make_mesh(MeshConfig(data=4, tensor=2))):
        shardings = {"a": sharding(("batch", "vocab"), (8, 2)), "b": [replicated()]}
        placed = distributed.put_global(tree, shardings)
        assert placed["a"].sharding == shardings["a"]
        assert {shard.data.shape for shard in placed["a"].addressable_shards} == {(2, 1)}
        chex.assert_trees_all_equal(distributed.fetch(placed), tree)
    on_one = distributed.put_global(tree, {"a": None, "b": [None]})
    assert len(on_one["a"].devices()) == 1
    chex.assert_trees_all_equal(distributed.fetch(on_one), tree)


def test_one_host_starts_and_writes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("R1JAX_COORDINATOR", raising=False)
    distributed.start()
    assert distributed.is_writer() and jax.process_count() == 1
    numbers = {"a": np.arange(2.0)}
    assert distributed.from_first(numbers) is numbers
    distributed.wait("the end")


@pytest.mark.parametrize(("count", "index"), [(None, "0"), ("2", None), ("two", "0")])
def test_half_a_start_up_is_refused(monkeypatch: pytest.MonkeyPatch, count: str | None, index: str | None) -> None:
    monkeypatch.setenv("R1JAX_COORDINATOR", "localhost:1234")
    for key, value in {"R1JAX_PROCESS_COUNT": count, "R1JAX_PROCESS_ID": index}.items():
        monkeypatch.delenv(key, raising=False)
        if value is not None:
            monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match="needs R1JAX_PROCESS_COUNT and R1JAX_PROCESS_ID as whole numbers"):
        distributed.start()


def test_clusters_are_found_in_the_environment() -> None:
    explicit = {"R1JAX_COORDINATOR": "a:1", "R1JAX_PROCESS_COUNT": "4", "R1JAX_PROCESS_ID": "3"}
    joined = {"coordinator_address": "a:1", "num_processes": 4, "process_id": 3}
    assert distributed.find_cluster({**explicit, "R1JAX_CLUSTER": "tpu"}) == joined
    assert distributed.find_cluster({"R1JAX_CLUSTER": "tpu"}) == {}
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "2"}
    assert distributed.find_cluster(slurm) == {"cluster_detection_method": "slurm"}
    assert distributed.find_cluster({**slurm, "R1JAX_CLUSTER": "none"}) is None
    assert distributed.find_cluster({**slurm, "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert distributed.find_cluster({}) is None


@pytest.mark.parametrize(
    ("shape", "devices"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_NTASKS_PER_NODE": "4", "SLURM_LOCALID": "3"}, [3]),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_NTASKS_PER_NODE": "1", "SLURM_LOCALID": "0"}, [0, 1, 2, 3]),
        ({"CUDA_VISIBLE_DEVICES": "3", "SLURM_NTASKS_PER_NODE": "4", "SLURM_LOCALID": "3"}, [0]),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),
        ({"SLURM_NTASKS_PER_NODE": "4"}, None),
    ],
)
def test_a_slurm_task_takes_the_gpus_of_its_share(shape: dict[str, str], devices: list[int] | None) -> None:
    found = distributed.find_cluster({"SLURM_STEP_NUM_TASKS": "8", **shape})
    assert found == {"cluster_detection_method": "slurm"} | ({} if devices is None else {"local_device_ids": devices})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"R1JAX_CLUSTER": "ray"}, "R1JAX_CLUSTER must be tpu, slurm or none, got 'ray'"),
        (
            {"R1JAX_COORDINATOR": "a", "R1JAX_PROCESS_COUNT": "2", "R1JAX_PROCESS_ID": "0"},
            "R1JAX_COORDINATOR must be host:port",
        ),
        (
            {"R1JAX_COORDINATOR": "a:1", "R1JAX_PROCESS_COUNT": "2", "R1JAX_PROCESS_ID": "2"},
            "less than R1JAX_PROCESS_COUNT, got a:1, 2 and 2",
        ),
        ({"R1JAX_PROCESS_COUNT": "2", "R1JAX_PROCESS_ID": "0"}, "each process would train a model of its own"),
        (
            {"SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS_PER_NODE": "2", "CUDA_VISIBLE_DEVICES": "0,1,2,3"},
            "2 SLURM tasks share the 4 GPUs",
        ),
        ({"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS must be a whole number, got 'many'"),
    ],
)
def test_odd_environments_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distributed.find_cluster(environment)


@pytest.mark.parametrize("host", ["localhost", "no-such-host.invalid"])
def test_a_wrong_coordinator_is_told_in_bounded_time(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    keys = {"COORDINATOR": f"{host}:{free_port()}", "PROCESS_COUNT": "2", "PROCESS_ID": "1", "CONNECT_SECONDS": "1"}
    for key, value in keys.items():
        monkeypatch.setenv(f"R1JAX_{key}", value)
    begin = time.monotonic()
    with pytest.raises(UserError, match=f"no coordinator answers at R1JAX_COORDINATOR={host}:.* within 1 s"):
        distributed.start()
    assert time.monotonic() - begin < 30


LOSES_ONE = """
import os, sys, time
import jax, jax.numpy as jnp
from r1jax.core import distributed
from r1jax.core.sharding import MeshConfig, make_mesh, replicated, use_mesh
distributed.start()
with use_mesh(make_mesh(MeshConfig(data=2))):
    for step in range(10_000):
        distributed.fetch(jax.jit(lambda x: x.sum(), out_shardings=replicated())(jnp.ones(8) * step))
        if step == 3 and jax.process_index() == 1:
            os.kill(os.getpid(), 9)
        if step == 3 and sys.argv[1] == "alone":
            time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("doing", ["together", "alone"])
def test_a_process_that_dies_ends_the_others_within_a_minute(doing: str) -> None:
    """Whether they wait for it in a collective or are at work by themselves."""
    survivor, victim = start_two(LOSES_ONE, doing)
    try:
        victim.communicate(timeout=120)
        _, errors = survivor.communicate(timeout=60)
    finally:
        survivor.kill()
    assert survivor.returncode != 0
    assert re.search("heartbeat|unhealthy|Connection|closed by peer|task 1|DEADLINE|UNAVAILABLE", errors), errors[
        -2000:
    ]


def test_two_processes_are_one_program() -> None:
    processes = start_two(TWO_PROCESSES)
    try:
        outcomes = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for index, (process, (output, errors)) in enumerate(zip(processes, outcomes, strict=True)):
        assert process.returncode == 0, errors
        assert output.splitlines()[-1] == f"process {index} rows {4 * index} {4 * index + 4}"
