"""Options in combination, drawn by seed: whatever only changes how a step is computed changes no text and no metric."""

import functools
import pathlib
import random
from typing import Any

import jax
import pytest

from r1jax.core.sharding import make_mesh, use_mesh
from r1jax.stages.grpo import GRPORun
from tests.stages import runs

BASE = {
    "data__eval_problems": 0,
    "rollout__slots": 16,
    "train__updates_per_step": 2,
    "train__micro_batch_size": 8,
    "loss__kl_coefficient": 0.01,
    "optimizer__learning_rate": 1e-4,
}
SAME = {  # values that give the same step
    "train__micro_batch_size": (4, 8, 16),
    "train__completions_per_row": (1, 2, 4),
    "train__share_prompts": (True, False),
    "train__logits_chunk": (0, 4, 8),
    "model__scan_layers": (False, True),
    "model__remat": ("none", "full", "dots"),
    "optimizer__offload": (False, True),
    "rollout__slots": (8, 16, 32),
    "rollout__prefill_batch": (8, 16),
    "rollout__cache_pieces": (1, 2, 4),
}
MESHES = {
    "one": {},
    "rows": {"mesh__data": 8},
    "split": {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2},
    "rules": {"mesh__fsdp": 4, "mesh__data": 2, "mesh__rules": '{"vocab": null, "mlp": "fsdp", "embed": null}'},
}
EXPERTS = {
    "model__preset": "tiny_deepseek_v3",
    "model__sizes": '{"vocab_size": 264, "num_layers": 2, "mtp_depths": 0}',
    "model__seed": 3,
}
WAYS = {
    "model__dispatch": ("dense", "grouped", "all_gather", "all_to_all"),
    "model__dispatch_tokens": (0, 16),
    "model__buffer_factor": (0.0, 8.0),  # so large that nothing overflows
    "train__replay_experts": (False, True),
}
EXPERT_MESHES = {"one": {}, "experts": {"mesh__data": 1, "mesh__expert": 2, "mesh__fsdp": 4}}
COMPARED = ("loss", "reward", "entropy", "grad_norm", "kl", "completions/mean_length", "clip_ratio/region_mean")


def draw(seed: int, values: dict[str, tuple], meshes: dict[str, dict]) -> tuple[str, dict[str, Any]]:
    """(name of a mesh, its settings and some options), the same for a seed."""
    chance = random.Random(seed)
    mesh = chance.choice(sorted(meshes))
    names = chance.sample(sorted(values), chance.randint(1, min(4, len(values))))
    chosen = {name: chance.choice(values[name]) for name in names}
    if chosen.get("model__dispatch") == "dense":
        chosen |= {"model__dispatch_tokens": 0, "model__buffer_factor": 0.0}
    return mesh, chosen | meshes[mesh] | ({"train__micro_batch_size": 4} if mesh != "one" else {})


def take_step(workdir: pathlib.Path, model: pathlib.Path, changes: dict[str, Any], devices: int) -> tuple[dict, list]:
    changes = {"model__name": model, **BASE, **changes}
    if devices > 1:
        changes |= {"train__completions_per_row": 1, "train__micro_batch_size": 2, "rollout__slots": 32}
        changes |= {"rollout__prefill_batch": 8}
    settings = runs.read_settings(runs.CONFIG, **changes)
    with use_mesh(make_mesh(settings.mesh, jax.devices()[:devices])):
        metrics, samples = GRPORun(settings, workdir).step(1)
    return metrics, [sample["completion"] for sample in samples]


def compare(workdir: pathlib.Path, model: Any, family: dict[str, Any], drawn: tuple[str, dict[str, Any]]) -> None:
    mesh, changes = drawn
    expected, texts = reference(model, tuple(family.items()))
    found, same = take_step(workdir / "other", model, {**family, **changes}, 1 if mesh == "one" else 8)
    assert same == texts, drawn
    for name in COMPARED:
        assert found[name] == pytest.approx(expected[name], rel=2e-5, abs=2e-6), (name, drawn)


@functools.cache
def reference(model: pathlib.Path, family: tuple) -> tuple[dict, list]:
    return take_step(pathlib.Path("unused"), model, dict(family), 1)


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 24))])
def test_options_that_change_nothing(seed: int, tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    compare(tmp_path, tiny_model, {}, draw(seed, SAME, MESHES))


@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 16))])
def test_ways_of_experts_that_change_nothing(seed: int, tmp_path: pathlib.Path) -> None:
    compare(tmp_path, "", EXPERTS, draw(seed, {**SAME, **WAYS}, EXPERT_MESHES))
