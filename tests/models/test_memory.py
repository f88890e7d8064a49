"""A model is imported in little more memory than its parameters take: 3 GB in shards, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from r1jax.models.families import llama
from r1jax.weights.parameters import of_shape
from r1jax.weights.safetensors_writer import Spec, write_tensors

CONFIG = llama.Config(32_000, 2048, 8192, 24, 16, 8, 128, tie_embeddings=False)

LOAD = """
import re, sys, threading, time
import jax
from r1jax.weights import load_pretrained

def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])

jax.numpy.zeros(1).block_until_ready()
before = peak = anonymous()
done = False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)

thread = threading.Thread(target=watch)
thread.start()
model, _ = load_pretrained(sys.argv[1], dtype="bfloat16", scan_layers=sys.argv[2] == "True")
jax.block_until_ready(jax.tree.leaves(model))
done = True
thread.join()
print(max(peak, anonymous()) - before)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 3 GB in bfloat16, in shards of 1 GB."""
    folder = tmp_path_factory.mktemp("large")
    needed, low = of_shape(llama, CONFIG), np.dtype(ml_dtypes.bfloat16)
    specs = {name: Spec(needed.shape(name), low) for name in needed.names}
    assert 2.9e9 < sum(spec.size for spec in specs.values()) < 3.3e9
    write_tensors(folder, specs, lambda name: np.full(specs[name].shape, 0.5, low), shard_bytes=10**9)
    (folder / "config.json").write_text(json.dumps(llama.to_hf(CONFIG)))
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("scan_layers", [False, True])
def test_import_takes_the_parameters_and_at_most_two_tensors_more(folder: Path, scan_layers: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), str(scan_layers)], capture_output=True, text=True, check=True
    )
    needed = of_shape(llama, CONFIG)
    sizes = [2 * int(np.prod(needed.shape(name))) for name in needed.names]
    rise = int(done.stdout)
    print(f"anonymous memory rose by {rise / 1e9:.3f} GB for {sum(sizes) / 1e9:.3f} GB of parameters")
    assert 0.9 * sum(sizes) < rise <= sum(sizes) + 2 * max(sizes)
