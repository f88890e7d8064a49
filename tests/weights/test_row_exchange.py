"""Several processes load one model: each byte travels about once, whatever the mesh, and every shard is right."""

import gzip
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from r1jax.core.sharding import MeshConfig, make_mesh
from r1jax.weights import row_exchange
from r1jax.weights.row_exchange import find_exchange
from tests.core.buckets.test_staging import MISSING, Bucket
from tests.core.buckets.test_staging import bucket as bucket
from tests.core.test_distributed import free_port
from tests.environment import ROOT, make_xla_flags
from tests.stages import runs
from tests.stages.test_resume import FLAGS, assert_same_run, finish
from tests.tiny_model import write_tiny_model
from tests.weights.hub import serve
from tests.weights.test_fp8 import GOLDEN, quantize, write

PROGRAM = """
import json, sys
import jax, numpy as np
from r1jax.core import distributed
from r1jax.core.buckets import staging
from r1jax.core.sharding import MeshConfig, make_mesh
from r1jax.models.transformer import split
from r1jax.weights import load_pretrained, row_exchange
from r1jax.weights.fp8 import BlockScaled
distributed.start()
row_exchange.LEAST_BYTES = 10_000
staging.REACH_SECONDS = 600.0  # where other tests run
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
        print(f"{case['mesh']}: {case['sent'] / stored:.3f} of the bytes of the model")
        assert case["sent"] <= 1.2 * stored, case  # with copies (data=4) a process's own shards are the whole model
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.slow
def test_four_processes_multiply_out_only_their_share_of_8_bit_experts(tmp_path: Path) -> None:
    folder = write(tmp_path / "fp8", quantize(load_file(GOLDEN / "model.safetensors"))[0])
    meshes = [dict(data=1, expert=4), dict(data=1, fsdp=2, expert=2), dict(data=1, fsdp=4)]
    cases = [{"mesh": mesh, "dtype": "float32", "scan_layers": scan} for mesh in meshes for scan in (False, True)]
    for case in load_in_four(str(folder), folder, cases, lambda: 0):
        print(f"{case['mesh']}: {case['scaled'] / case['held']:.3f} of what it holds")
        assert 0 < case["scaled"] <= 1.1 * case["held"], case


class Proxy:
    """Passes requests on to `host`, and counts the bytes of objects named *.safetensors that come back."""

    def __init__(self, host: str):
        self.sent, self.asked, lock = 0, 0, threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host",)}
                request = urllib.request.Request(host + self.path, body or None, headers, method=self.command)
                try:
                    reply = urllib.request.urlopen(request)
                except urllib.error.HTTPError as error:
                    reply = error
                content = reply.read()
                if ".safetensors" in self.path and "alt=media" in self.path:
                    with lock:
                        proxy.sent += len(content)
                        proxy.asked += 1
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815 (the server's names)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def upload(bucket: Bucket, folder: Path, prefix: str) -> None:
    for file in folder.iterdir():
        query = urllib.parse.urlencode({"uploadType": "media", "name": f"{prefix}/{file.name}"})
        place = f"{bucket.host}/upload/storage/v1/b/runs/o?{query}"
        urllib.request.urlopen(urllib.request.Request(place, file.read_bytes(), method="POST")).read()


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason="needs gcsfs and the emulator of a bucket")
def test_four_processes_read_each_byte_of_a_bucket_once(bucket: Bucket, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "there", tie_word_embeddings=False)
    stored = (folder / "model.safetensors").stat().st_size
    upload(bucket, folder, "models/tiny")
    proxy = Proxy(bucket.host)
    cases = [{"mesh": mesh, "dtype": "float32", "scan_layers": False} for mesh in MESHES]
    environment = {"STORAGE_EMULATOR_HOST": proxy.address, "TMPDIR": str(tmp_path)}
    found = load_in_four("gs://runs/models/tiny", folder, cases, lambda: proxy.sent, **environment)
    proxy.server.shutdown()
    print([f"{case['mesh']}: {case['sent'] / stored:.3f} of the bytes of the model" for case in found])
    assert len(found) == len(cases) and all(0 < case["sent"] <= 1.2 * stored for case in found), found
    held = [file for place in tmp_path.glob("r1jax-bucket-*") for file in place.rglob("*.safetensors")]
    assert not held, "no weights on the disk"


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason="needs gcsfs and the emulator of a bucket")
def test_a_run_with_model_data_and_workdir_in_a_bucket(bucket: Bucket, tiny_model: Path, tmp_path: Path) -> None:
    upload(bucket, tiny_model, "models/tiny")
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"prompt": f"{a} + {b} = ", "solution": str(a + b), "tests": [a]} for a in range(9) for b in range(9)]
    with gzip.open(data / "sums.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    upload(bucket, data, "sets/sums")
    expected, log = tmp_path / "expected", tmp_path / "log"
    flags = [*FLAGS, "--config.data.source=file", "--config.data.args={}"]
    finish(runs.start(tiny_model, expected, f"--config.data.path={data}", *flags), expected)
    places = ["--workdir=gs://runs/a/run", "--config.data.path=gs://runs/sets/sums"]
    finish(runs.start("gs://runs/models/tiny", log, *places, *flags), log)  # type: ignore[arg-type]
    assert_same_run(bucket.download("a/run/", tmp_path / "found"), expected)


def test_copies_and_columns_are_exchanged_where_processes_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
    find = lambda shape, *spec, lead=0, row=1: find_exchange(shape, 1 << 30, place(*spec), lead=lead, row=row)
    assert find((8, 16), "fsdp", "tensor") is None, "one process"
    monkeypatch.setattr(row_exchange, "_find_crossing", lambda *_: {"data", "fsdp"})
    plan = find((8, 16), "fsdp", "tensor")
    assert plan is not None and plan.between.spec == PartitionSpec(None, ("tensor", "fsdp", "data"))
    assert (plan.at, plan.copied, plan.moved) == (1, ("data",), ((0, ("fsdp",)),))
    rows_alone = find((8, 4), "fsdp", "tensor")
    assert rows_alone is not None and rows_alone.between.spec[1] in (("tensor", "fsdp"), ("tensor", "data"))
    heads = find_exchange((8, 2, 8), 1 << 30, place("fsdp", "tensor"), lead=0, row=1, joined=True)
    assert heads is not None and heads.shape == (8, 16) and heads.split == (8,)
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
    monkeypatch.setattr(row_exchange, "_find_crossing", lambda *_: crossing)
    values = np.arange(8 * 16 * 4, dtype=np.float32).reshape(8, 16, 4)
    plan = find_exchange(values.shape, 1 << 30, placed, lead=0, row=1)
    assert plan is not None
    found = row_exchange.exchange(jax.device_put(values, plan.between), plan)
    assert found.sharding == placed
    np.testing.assert_array_equal(found, values)
