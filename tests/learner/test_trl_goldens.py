"""Losses of preferences and of a reward model beside TRL's trainers on the same batch (tests/goldens/make_trl.py)."""

import functools
import pathlib
from typing import Any

import jax
import numpy as np
import optax
import pytest

from r1jax.data.examples import Example
from r1jax.data.preferences.pair_loader import PairLoader
from r1jax.data.preferences.pairs import Pair, append_last, join_pair
from r1jax.data.sequences import PackingConfig
from r1jax.learner.preferences import (
    make_preference_loss,
    make_reward_loss,
    share_pairs,
    summarize_preferences,
    summarize_scores,
)
from r1jax.losses.preference import PreferenceConfig, RewardLossConfig
from r1jax.models.scores import attach_score
from r1jax.models.transformer import merge, split
from r1jax.weights.pretrained import load_pretrained
from tests.goldens.make_trl import BETA, CENTER, LOSSES, PAIRS

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "trl.npz"
SMOLLM2 = pathlib.Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
OURS = {
    "dpo": PreferenceConfig(beta=BETA),
    "ipo": PreferenceConfig(type="ipo", beta=BETA, length_normalized=True),
    "normalized": PreferenceConfig(beta=BETA, length_normalized=True),
}
MODELS = ["tiny", pytest.param("smollm2", marks=pytest.mark.slow)]


@functools.cache
def read(model: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as stored:
        return {key.partition(".")[2]: stored[key] for key in stored.files if key.startswith(f"{model}.")}


def make_pairs(golden: dict[str, np.ndarray], *, whole: bool) -> list[Pair]:
    """The pairs of the golden file, one after the other."""
    parts = np.split(golden["ids"], np.cumsum(golden["sizes"])[:-1])
    pairs = []
    for number in range(PAIRS):
        prompt, *said = parts[3 * number : 3 * number + 3]
        sides = []
        for completion in said:
            ids = np.concatenate([prompt, completion]).astype(np.int32)
            weights = (np.arange(1, len(ids)) >= len(prompt)).astype(np.float32)
            example = Example(ids[:-1], ids[1:], weights)
            sides.append(append_last(example) if whole else example)
        pairs.append(join_pair(sides, float(golden["margins"][number])))
    return pairs


def make_batch(golden: dict[str, np.ndarray], *, whole: bool = False) -> dict[str, Any]:
    """All pairs in one batch of packed rows."""
    pairs = make_pairs(golden, whole=whole)
    length = -(-max(len(pair.tokens) for pair in pairs) // 64) * 64
    packing = PackingConfig(length=length, bins=4, read_ahead=0)
    loader = PairLoader([pairs], PAIRS, packing, epochs=1, references=golden["reference"])
    batch = next(loader)
    loader.close()
    assert batch["shares"].sum() == PAIRS
    return share_pairs([batch])[0]


@functools.cache
def load(model: str, folder: pathlib.Path) -> Any:
    if model == "smollm2" and not SMOLLM2.exists():
        pytest.skip(f"needs {SMOLLM2} (python launch/fetch_demo.py)")
    return load_pretrained(SMOLLM2 if model == "smollm2" else folder)[0]


def take_gradient(loss_fn: Any, params: Any, batch: Any) -> tuple[float, float, dict[str, Any]]:
    (loss, sums), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, {}, batch)
    return float(loss), float(optax.tree.norm(gradient)), sums


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_a_step_of_preferences_is_that_of_trl(model: str, name: str, tiny_model: pathlib.Path) -> None:
    golden = read(model)
    if f"{name}.loss" not in golden:
        pytest.skip(f"the golden file has no {name} of {model}")
    graph, params = split(load(model, tiny_model))
    loss, norm, sums = take_gradient(make_preference_loss(graph, OURS[name]), params, make_batch(golden))
    assert loss == pytest.approx(float(golden[f"{name}.loss"]), rel=1e-5)
    assert norm == pytest.approx(float(golden[f"{name}.norm"]), rel=1e-4)
    metrics = summarize_preferences([sums])
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["logps/chosen"] == pytest.approx(float(golden["logps"][:, 0].mean()), rel=1e-5)
    if name == "dpo":
        implied = BETA * (golden["logps"] - golden["reference"])
        assert metrics["rewards/rejected"] == pytest.approx(float(implied[:, 1].mean()), rel=1e-3, abs=1e-4)
        assert metrics["rewards/accuracies"] == float((implied[:, 0] > implied[:, 1]).mean())


@pytest.mark.parametrize("model", MODELS)
def test_a_step_of_a_reward_model_is_that_of_trl(model: str, tiny_model: pathlib.Path) -> None:
    golden = read(model)
    plain = load(model, tiny_model)
    graph, params = split(plain)
    copy = jax.tree.map(lambda leaf: leaf, params)
    graph, params = split(attach_score(merge(graph, copy)))
    params["score"]["kernel"] = golden["score"][:, None]
    loss_fn = make_reward_loss(graph, RewardLossConfig(center_coefficient=CENTER))
    loss, norm, sums = take_gradient(loss_fn, params, make_batch(golden, whole=True))
    assert loss == pytest.approx(float(golden["reward.loss"]), rel=1e-5)
    assert norm == pytest.approx(float(golden["reward.norm"]), rel=1e-4)
    metrics = summarize_scores([sums])
    assert metrics["max_reward"] == pytest.approx(float(golden["scores"].max()), abs=1e-4)
    assert metrics["margin"] == pytest.approx(float(np.diff(golden["scores"][:, ::-1]).mean()), abs=1e-4)


def test_every_loss_of_the_file_has_its_settings_here() -> None:
    assert OURS.keys() == LOSSES.keys()
