"""A run that trained adapters is a model: that of its base with W + s A B for every adapted kernel."""

import json
import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from r1jax.core.checkpoint import Checkpoints
from r1jax.core.errors import UserError
from r1jax.learner.state import TrainState
from r1jax.models.transformer import split
from r1jax.weights import load_pretrained
from r1jax.weights.export import convert, describe
from r1jax.weights.pretrained import open_model

GOLDEN = Path(__file__).parents[1] / "goldens" / "dense" / "qwen2_tied"
RANK, ALPHA = 3, 12.0


@pytest.mark.parametrize("scan_layers", [False, True])
def test_adapters_are_added_to_the_base(tmp_path: Path, scan_layers: bool) -> None:
    base, workdir = tmp_path / "base", tmp_path / "run"
    shutil.copytree(GOLDEN, base)
    model, _ = load_pretrained(base, scan_layers=scan_layers)
    params, random = split(model)[1], np.random.default_rng(0)
    lead = (2,) if scan_layers else ()

    def adapt(kernel: jax.Array, inputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A, B and what the kernel becomes."""
        before, after = kernel.shape[len(lead) : len(lead) + inputs], kernel.shape[len(lead) + inputs :]
        a = random.normal(size=(*lead, *before, RANK)).astype(np.float32)
        b = random.normal(size=(*lead, RANK, *after)).astype(np.float32)
        product = a.reshape(*lead, -1, RANK) @ b.reshape(*lead, RANK, -1)
        return a, b, np.asarray(kernel) + ALPHA / RANK * product.reshape(kernel.shape)

    key = "stacks" if scan_layers else "layers"
    adapters: dict = {key: {}}
    for index, layer in params[key].items():
        part: dict = {}
        for group, name, inputs in (("attention", "key", 1), ("attention", "out", 2), ("mlp", "down", 1)):
            a, b, layer[group][name]["kernel"] = adapt(layer[group][name]["kernel"], inputs)
            part.setdefault(group, {})[name] = {"a": a, "b": b}
        adapters[key][index] = part
    checkpoints = Checkpoints(workdir)
    checkpoints.save(2, TrainState(jax.tree.map(jax.numpy.asarray, adapters), {}, jax.numpy.int32(2)), {})
    checkpoints.close()
    describe(open_model(base), workdir / "model")
    run = {"model": {"name": str(base)}, "lora": {"rank": RANK, "alpha": ALPHA}}
    (workdir / "config.json").write_text(json.dumps(run))

    found, _ = load_pretrained(workdir, scan_layers=scan_layers)
    chex.assert_trees_all_close(split(found)[1], params, rtol=1e-6, atol=1e-6)
    convert(workdir, tmp_path / "out", dtype="float32")
    again, _ = load_pretrained(tmp_path / "out", scan_layers=scan_layers)
    chex.assert_trees_all_equal(split(again)[1], split(found)[1])
    fresh = {**run, "model": {**run["model"], "preset": "tiny_qwen2"}}
    (workdir / "config.json").write_text(json.dumps(fresh))
    with pytest.raises(UserError, match="checkpoints/2: the base model of these adapters is not in a file"):
        load_pretrained(workdir)
    (workdir / "config.json").write_text(json.dumps(run))
    shutil.rmtree(base)
    with pytest.raises(UserError, match=f"no model {base}: there is no file or folder {base}"):
        load_pretrained(workdir)
