"""Losses and gradients of every family on eight simulated devices against one."""

import contextlib
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.losses.prediction import next_token_loss
from r1jax.models.transformer import merge, split
from r1jax.weights import load_pretrained
from tests.models import golden
from tests.models.toy import assert_close

FOLDERS = sorted((golden.DENSE.with_name("families")).iterdir())
MESHES = {
    "data 8": MeshConfig(),
    "fsdp 8": MeshConfig(data=1, fsdp=8),
    "fsdp 4, tensor 2": MeshConfig(data=1, fsdp=4, tensor=2),
    "data 4, context 2": MeshConfig(data=4, context=2),
    "data 2, fsdp 2, expert 2": MeshConfig(data=2, fsdp=2, expert=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_losses_and_gradients_are_those_of_one_device(folder: pathlib.Path) -> None:
    tokens = np.random.default_rng(0).integers(2, 64, (8, 24))
    segments = np.where(np.arange(24) < 14, 1, 2)[None].repeat(8, 0)
    segments[:, 21:] = 0
    positions = np.where(np.arange(24) < 14, np.arange(24), np.arange(24) - 14)[None].repeat(8, 0)

    def compute(mesh: MeshConfig | None) -> Any:
        with use_mesh(make_mesh(mesh)) if mesh else contextlib.nullcontext():
            graph, params = split(load_pretrained(folder, scan_layers=True)[0])

            def loss(params: dict) -> jax.Array:
                model = merge(graph, params)
                hidden = model.hidden(tokens, positions=positions, segment_ids=segments).hidden
                total, weight = next_token_loss(hidden, tokens, model.unembed, segment_ids=segments)
                return total / weight

            return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))

    one = compute(None)
    heads = load_pretrained(folder)[0].config
    for name, mesh in MESHES.items():
        if mesh.fsdp == 8 and hasattr(heads, "latents"):
            mesh = MeshConfig(data=2, fsdp=4)  # latents of 12 values
        if mesh.tensor > getattr(heads, "num_kv_heads", mesh.tensor):
            continue  # one head of keys cannot be split
        value, gradient = compute(mesh)
        np.testing.assert_allclose(value, one[0], rtol=1e-5, err_msg=name)
        assert_close(gradient, one[1], 1e-5)
