"""A run's checkpoint as MODEL: each chunk is read once, into any layout and mesh, and into files."""

import collections
import json
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from r1jax.core.checkpoint import Checkpoints, SavedArrays
from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.learner.optimizer import OptimizerConfig, make_optimizer
from r1jax.learner.state import init_state
from r1jax.models.transformer import logical_axes, split
from r1jax.runs.sampler import load_sampler
from r1jax.weights import load_pretrained, reading
from r1jax.weights.export import convert, describe
from r1jax.weights.pretrained import open_model
from tests.tiny_model import write_tiny_model
from tests.weights.test_export import GOLDENS, assert_same

LAYERS = 28


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 28 layers."""
    return write_tiny_model(tmp_path_factory.mktemp("deep") / "model", num_hidden_layers=LAYERS)


def save(model: Path, workdir: Path, *, mesh: Any = None, **options: Any) -> Path:
    """A workdir with a checkpoint of the model, as a training run writes it."""
    loaded, _ = load_pretrained(model, mesh=mesh, **options)
    with use_mesh(mesh or make_mesh(MeshConfig(), jax.devices()[:1])):
        optimizer = make_optimizer(OptimizerConfig(), 1)
        state = init_state(split(loaded)[1], logical_axes(loaded), optimizer)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(1, state, {})
    checkpoints.close()
    describe(open_model(model), workdir / "model")
    return workdir


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> collections.Counter:
    """Bytes that are read of each saved array, by path."""
    read, bytes_read = SavedArrays.read, collections.Counter[Any]()

    def counting(self: SavedArrays, path: Any, place: Any = ()) -> np.ndarray:
        array = read(self, path, place)
        chunks = [box for box in self.chunks(path) if not place or _meets(box, place)]
        bytes_read[path] += sum(int(np.prod([b - a for a, b in box])) for box in chunks) * array.itemsize
        return array

    monkeypatch.setattr(SavedArrays, "read", counting)
    return bytes_read


def _meets(box: Any, place: Any) -> bool:
    """Whether reading `place` needs the chunk."""
    for (start, stop), part in zip(box, place, strict=False):
        low, high = (part.start, part.stop) if isinstance(part, slice) else (part, part + 1)
        if high <= start or stop <= low:
            return False
    return True


def stored_bytes(workdir: Path) -> int:
    saved = SavedArrays(workdir / "checkpoints" / "1")
    paths = [path for path in saved.paths if path[0] == "params"]
    return sum(int(np.prod(saved.shape(path))) * saved.dtype(path).itemsize for path in paths)


@pytest.mark.parametrize("saved_layers", [True, False])
def test_each_chunk_is_read_once(deep: Path, tmp_path: Path, count: collections.Counter, saved_layers: bool) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    workdir = save(deep, tmp_path / "run", mesh=mesh, scan_layers=saved_layers)
    expected, stored = split(load_pretrained(deep)[0])[1], stored_bytes(workdir)
    for options in ({"scan_layers": True}, {"mesh": make_mesh(MeshConfig(data=1, fsdp=8))}, {"dtype": "bfloat16"}):
        count.clear()
        params = split(load_pretrained(workdir, **options)[0])[1]  # type: ignore[arg-type]
        assert sum(count.values()) == stored, options
        wanted = split(load_pretrained(deep, **options)[0])[1]  # type: ignore[arg-type]
        chex.assert_trees_all_equal(jax.device_get(params), jax.device_get(wanted))
    count.clear()
    convert(workdir, tmp_path / "out", shard_bytes=1_000_000)
    assert sum(count.values()) == stored
    assert_same(tmp_path / "out", deep)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    if saved_layers:
        count.clear()
        found = load_sampler(workdir).params
        assert sum(count.values()) == stored
        chex.assert_trees_all_equal(jax.device_get(found), jax.device_get(expected))


def test_experts_and_depths_go_the_same_way(tmp_path: Path, count: collections.Counter) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, expert=2))
    golden = GOLDENS / "deepseek" / "v3_latent"
    workdir = save(golden, tmp_path / "run", mesh=mesh, dtype="bfloat16", scan_layers=True)
    stored = stored_bytes(workdir)
    count.clear()
    params = split(load_pretrained(workdir, dtype="bfloat16")[0])[1]
    assert sum(count.values()) == stored
    chex.assert_trees_all_equal(params, split(load_pretrained(golden, dtype="bfloat16")[0])[1])
    count.clear()
    convert(workdir, tmp_path / "out")
    assert sum(count.values()) == stored
    assert_same(tmp_path / "out", golden)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_nextn_predict_layers"] == 1


def test_threads_and_a_small_window_place_the_same(deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workdir = save(deep, tmp_path / "run", scan_layers=True)
    expected = split(load_pretrained(deep)[0])[1]
    monkeypatch.setattr(reading, "SMALL", 0)
    monkeypatch.setattr(reading, "WINDOW", 100_000)
    monkeypatch.setattr(reading, "STAGING", 50_000)
    for source in (deep, workdir):
        chex.assert_trees_all_equal(split(load_pretrained(source)[0])[1], expected)
