"""Several processes load one model: each byte travels about once, whatever the mesh, and every shard is right."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from r1jax.core.sharding import MeshConfig, make_mesh
from r1jax.weights import exchange
from r1jax.weights.exchange import find_exchange
from tests.core.test_distributed import free_port
from tests.environment import ROOT, make_xla_flags
from tests.tiny_model import write_tiny_model
from tests.weights.hub import serve

PROGRAM = """
import json, sys
import jax, numpy as np
from r1jax.core import distributed
from r1jax.core.sharding import MeshConfig, make_mesh
from r1jax.models.transformer import split
from r1jax.weights import exchange, load_pretrained
from r1jax.weights.fp8 import BlockScaled
distributed.start()
exchange.LEAST_BYTES = 10_000
scaled, read = [], BlockScaled.read
def count(self, name, rows=None):
    array = read(self, name, rows)
    scaled.append(array.nbytes // 4 if self._is_scaled(name) else 0)
    return array
BlockScaled.read = count
expected = {}
for case in json.loads(sys.argv[2]):
    mesh = make_mesh(MeshConfig(**case["mesh"]))
    options = dict(dtype=case["dtype"], scan_layers=case["scan_layers"])
    scaled.clear()
    params = split(load_pretrained(sys.argv[1], mesh=mesh, **options)[0])[1]
    done, key = sum(scaled), str(options)
    if key not in expected:
        expected[key] = split(load_pretrained(sys.argv[3], **options)[0])[1]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        want = expected[key]
        for entry in path:
            want = want[entry.key]
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), np.asarray(want)[shard.index], str(path))
    held = sum(shard.data.size for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
    distributed.wait(str(case))
    if jax.process_index() == 0:
        print(json.dumps({**case, "scaled": done, "held": held}), flush=True)
        sys.stdin.readline()
    distributed.wait(str(case) + " counted")
"""
MESHES = [dict(data=1, fsdp=4), dict(data=4), dict(data=2, tensor=2), dict(data=1, fsdp=2, context=2)]


def load_in_four(model: str, local: Path, cases: list[dict[str, Any]], counted: Any, **environment: str) -> list[dict]:
    """Four processes of a device each load `model` in each case and compare it with `local`; what the first says, with
    the difference that a load made to `counted()`.
    """
    shared = {**os.environ, "R1JAX_COORDINATOR": f"localhost:{free_port()}", "R1JAX_PROCESS_COUNT": "4"}
    shared |= {"XLA_FLAGS": make_xla_flags(1), "PYTHONPATH": str(ROOT), **environment}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, model, json.dumps(cases), str(local)],
            env={**shared, "R1JAX_PROCESS_ID": str(index)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if index else None,
            text=True,
        )
        for index in range(4)
    ]
    first, found = processes[0], []
    assert first.stdout is not None and first.stdin is not None
    try:
        before = counted()
        for line in first.stdout:
            if line.startswith("{"):
                found.append({**json.loads(line), "sent": counted() - before})
                before = counted()
                first.stdin.write("\n")
                first.stdin.flush()
        outcomes = [process.communicate(timeout=60)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * 4, outcomes
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return found


@pytest.mark.slow
def test_four_processes_read_each_byte_of_a_hub_once(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "there", tie_word_embeddings=False)
    stored = (folder / "model.safetensors").stat().st_size
    cases = [{"mesh": mesh, "dtype": "float32", "scan_layers": False} for mesh in MESHES]
    cases += [{"mesh": MESHES[0], "dtype": "bfloat16", "scan_layers": True}]
    with serve(folder) as hub:
        environment = {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        found = load_in_four("org/name", folder, cases, hub.weights_sent, **environment)
    assert len(found) == len(cases)
    for case in found:
        assert case["sent"] <= 1.2 * stored, case  # with copies (data=4) a process's own shards are the whole model
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_copies_and_columns_are_exchanged_where_processes_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
    find = lambda shape, *spec, lead=0, row=1: find_exchange(shape, 1 << 30, place(*spec), lead=lead, row=row)
    assert find((8, 16), "fsdp", "tensor") is None, "one process"
    monkeypatch.setattr(exchange, "_find_crossing", lambda *_: {"data", "fsdp"})
    plan = find((8, 16), "fsdp", "tensor")
    assert plan is not None and plan.between.spec == PartitionSpec(None, ("tensor", "fsdp", "data"))
    assert (plan.at, plan.copied, plan.moved) == (1, ("data",), ((0, ("fsdp",)),))
    rows_alone = find((8, 4), "fsdp", "tensor")
    assert rows_alone is not None and rows_alone.copied == () and rows_alone.between.spec[1] == ("tensor", "fsdp")
    stacked = find((4, 8, 2), None, "fsdp", "tensor", lead=1, row=2)
    assert (
        stacked is not None
        and stacked.at == 0
        and stacked.between.spec == PartitionSpec(("fsdp", "data"), None, "tensor")
    ), "layers are shared out where rows do not divide"
    assert find((8, 1), "fsdp", None) is None, "nothing divides: each process reads its rows whole"


@pytest.mark.parametrize("spec", [("fsdp", "tensor", None), (("fsdp", "tensor"), None, None), (None, None, "fsdp")])
@pytest.mark.parametrize("crossing", [{"data", "fsdp"}, {"fsdp"}, {"data", "fsdp", "tensor"}])
def test_values_arrive_where_they_belong(monkeypatch: pytest.MonkeyPatch, spec: tuple, crossing: set[str]) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    placed = NamedSharding(mesh, PartitionSpec(*spec))
    monkeypatch.setattr(exchange, "_find_crossing", lambda *_: crossing)
    values = np.arange(8 * 16 * 4, dtype=np.float32).reshape(8, 16, 4)
    plan = find_exchange(values.shape, 1 << 30, placed, lead=0, row=1)
    assert plan is not None
    found = exchange.exchange(jax.device_put(values, plan.between), plan)
    assert found.sharding == placed
    np.testing.assert_array_equal(found, values)
