"""The digest of a MODEL: equal for copies, another for another model, or for a run that trained on."""

import shutil
from pathlib import Path

import jax.numpy as jnp

from r1jax.core.checkpoint import Checkpoints
from r1jax.weights.identity import identify_model


def test_a_copy_has_the_digest_and_a_changed_weight_has_not(tiny_model: Path, tmp_path: Path) -> None:
    digest = identify_model(tiny_model)
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    assert identify_model(copy) == digest and len(digest) == 16
    (copy / "README.md").write_text("no part of the model")
    assert identify_model(copy) == digest
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert identify_model(copy) != digest


def test_a_run_that_trained_on_is_another_model(tmp_path: Path) -> None:
    checkpoints, digests = Checkpoints(tmp_path), []
    for step in (1, 2):
        checkpoints.save(step, {"params": {"embed": jnp.full((4, 2), float(step))}}, {})
        digests.append(identify_model(tmp_path))
    checkpoints.close()
    assert digests[0] == identify_model(tmp_path / "checkpoints" / "1") != digests[1] == identify_model(tmp_path)
