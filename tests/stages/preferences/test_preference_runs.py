"""Runs of DPO and of a reward model: they learn, write what the contract says, and end alike however they are cut."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.core.metrics import read_rows
from r1jax.losses.preference import METHODS
from r1jax.models.transformer import merge
from r1jax.stages.preferences.dpo import REFERENCES, DPORun
from r1jax.stages.preferences.reward_model import CALIBRATION, RewardModelRun
from r1jax.stages.sft import PackedRun
from r1jax.weights.export import convert
from r1jax.weights.pretrained import load_pretrained
from tests.stages import runs
from tests.stages.runs import Rows, assert_same_run, read_params

CONFIG = pathlib.Path(__file__).with_name("tiny_preferences.py")
STAGES = ("dpo", "reward_model")
STEPS = 6
SAVED = {"steps": STEPS, "eval__every_steps": 4, "checkpoint__every_steps": 2}


def train(workdir: pathlib.Path, model: pathlib.Path, stage: str, devices: int = 1, **changes: Any) -> Rows:
    return runs.train(workdir, model, devices, config=f"{CONFIG}:{stage}", **changes)


@pytest.fixture(scope="module")
def finished(tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """The workdirs of runs that were never stopped."""
    folder = tmp_path_factory.mktemp("preferences")
    for stage in STAGES:
        train(folder / stage, tiny_model, stage, **SAVED)
    return {stage: folder / stage for stage in STAGES}


def test_dpo_prefers_what_is_chosen_and_its_metrics_have_trls_names(finished: dict[str, pathlib.Path]) -> None:
    rows = read_rows(finished["dpo"] / "metrics.jsonl")
    names = [f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")]
    assert all({*names, "logps/chosen", "logps/rejected", "nll_loss", "loss", "grad_norm"} <= set(r) for r in rows[1:])
    assert rows[0]["eval/loss"] == pytest.approx(np.log(2)) and rows[1]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["eval/rewards/accuracies"] == 1 and rows[-1]["eval/loss"] < 0.5
    assert (finished["dpo"] / REFERENCES).exists()


def test_a_reward_model_tells_accuracy_and_calibration(finished: dict[str, pathlib.Path]) -> None:
    rows = read_rows(finished["reward_model"] / "metrics.jsonl")
    assert all({"accuracy", "margin", "min_reward", "mean_reward", "max_reward"} <= set(row) for row in rows[1:])
    assert rows[0]["eval/accuracy"] < 0.8 and rows[-1]["eval/accuracy"] == 1
    told = json.loads((finished["reward_model"] / CALIBRATION).read_text())
    assert told["pairs"] == 20 and sum(tenth["pairs"] for tenth in told["tenths"]) == 20
    assert told["error"] == pytest.approx(rows[-1]["eval/calibration_error"])


class StoppedError(Exception):
    """What ends a run in the middle."""


@pytest.mark.parametrize("stage", STAGES)
def test_stopped_and_started_again_it_ends_bit_for_bit_the_same(
    stage: str,
    finished: dict[str, pathlib.Path],
    tiny_model: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = PackedRun.step

    def stopping(run: PackedRun, number: int) -> Any:
        if number == 4:
            raise StoppedError
        return step(run, number)

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(PackedRun, "step", stopping)
        train(tmp_path / "run", tiny_model, stage, **SAVED)
    train(tmp_path / "run", tiny_model, stage, **SAVED)
    assert_same_run(tmp_path / "run", finished[stage])


@pytest.mark.slow
@pytest.mark.parametrize("stage", [*STAGES, pytest.param("kto", marks=pytest.mark.slow)])
def test_eight_devices_and_small_micro_batches_take_the_same_steps(
    stage: str, finished: dict[str, pathlib.Path], tiny_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    changes = {"mesh__fsdp": 4, "mesh__data": 2, "train__micro_batch_size": 1}
    if stage == "reward_model":
        names = ("loss", "accuracy", "mean_reward", "grad_norm")
    else:
        names, changes = ("loss", "rewards/margins", "logps/chosen", "grad_norm"), changes | {"train__logits_chunk": 16}
    method = {"loss__type": "kto"} if stage == "kto" else {}
    config = "dpo" if stage == "kto" else stage
    found = train(tmp_path / "many", tiny_model, config, devices=8, steps=2, **changes, **method)
    expected = train(tmp_path / "one", tiny_model, config, steps=2, **method)
    close = {"rel": 1e-5, "abs": 1e-6}
    for one, other in zip(expected[1:], found[1:], strict=True):
        for name in names:
            assert other[name] == pytest.approx(one[name], **close), name
    assert found[0]["eval/loss"] == pytest.approx(expected[0]["eval/loss"], rel=1e-5)


@pytest.mark.parametrize("method", sorted({*METHODS} - {"dpo"}))
def test_every_method_learns(method: str, tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    rows = train(tmp_path, tiny_model, "dpo", steps=5, loss__type=method, eval__every_steps=0)
    assert rows[-1]["eval/loss"] < rows[0]["eval/loss"]
    assert rows[-1]["eval/rewards/margins"] > 0 or method == "orpo"  # most of which is the text's own loss
    assert (tmp_path / REFERENCES).exists() == (method not in ("orpo", "simpo"))


@pytest.mark.slow
def test_the_base_under_adapters_is_the_reference(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    changes = {"lora__rank": 4, "optimizer__learning_rate": 1e-2, "steps": 4}
    kept = train(tmp_path / "kept", tiny_model, "dpo", **changes)
    base = train(tmp_path / "base", tiny_model, "dpo", loss__reference="base", **changes)
    assert not (tmp_path / "base" / REFERENCES).exists()
    for one, other in zip(kept[1:], base[1:], strict=True):
        for name in ("loss", "rewards/margins", "grad_norm"):
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name
    assert base[-1]["flops"] > 1.2 * kept[-1]["flops"]
    with pytest.raises(UserError, match=r"config\.loss\.reference needs adapters \(config\.lora\.rank\)"):
        train(tmp_path / "none", tiny_model, "dpo", loss__reference="base")


def test_adapters_and_the_score_are_trained_and_saved(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    changes = {"lora__rank": 4, "optimizer__learning_rate": 1e-2, "steps": STEPS}
    rows = train(tmp_path / "run", tiny_model, "reward_model", **changes)
    assert rows[-1]["eval/accuracy"] > 0.9
    saved = read_params(tmp_path / "run")
    assert "['score']['kernel']" in saved and sum(array.size for array in saved.values()) < 20_000
    run = RewardModelRun(
        runs.read_settings(f"{CONFIG}:reward_model", model__name=tiny_model, **changes), tmp_path / "run"
    )
    run.train()  # is finished: restores
    convert(tmp_path / "run", tmp_path / "folder")
    tokens = np.arange(4, 40).reshape(2, 18)
    for name in ("run", "folder"):
        model, _ = load_pretrained(tmp_path / name)
        whole = run.trainable.whole(run.state.params)
        mine = merge(run.trainable.graph, whole)
        expected = mine.rate(mine.hidden(tokens).hidden)
        np.testing.assert_allclose(model.rate(model.hidden(tokens).hidden), expected, atol=1e-5)


def test_a_trained_reward_model_is_a_model_that_scores_and_does_not_write(
    finished: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    convert(finished["reward_model"], tmp_path / "folder")
    described = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert described["architectures"] == ["LlamaForSequenceClassification"] and described["num_labels"] == 1
    assert described["pad_token_id"] is not None
    one, _ = load_pretrained(finished["reward_model"])
    other, _ = load_pretrained(tmp_path / "folder")
    tokens = np.arange(4, 40).reshape(2, 18)
    scores = one.rate(one.hidden(tokens).hidden)
    assert scores.shape == (2, 18)
    np.testing.assert_array_equal(scores, other.rate(other.hidden(tokens).hidden))
    with pytest.raises(UserError, match="this is a reward model"):
        one(tokens)


def test_a_reward_model_goes_on_from_its_own_score(
    finished: dict[str, pathlib.Path], tiny_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    rows = train(tmp_path, finished["reward_model"], "reward_model", steps=1)
    assert rows[0]["eval/loss"] == pytest.approx(
        read_rows(finished["reward_model"] / "metrics.jsonl")[-1]["eval/loss"], rel=1e-5
    )


def test_kept_references_are_read_again_and_those_of_other_pairs_are_not(
    finished: dict[str, pathlib.Path], tiny_model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = runs.read_settings(f"{CONFIG}:dpo", model__name=tiny_model, **SAVED)
    run = DPORun(settings, tmp_path / "first")
    asked: list[int] = []

    def find(updates: Any, batches: Any, count: int) -> np.ndarray:
        asked.append(count)
        return np.zeros((count, 2), np.float32)

    monkeypatch.setattr(type(run.updates), "find_references", find)
    DPORun(settings, tmp_path / "first")
    assert not asked
    (tmp_path / "first" / REFERENCES).write_bytes(b"torn")
    DPORun(settings, tmp_path / "first")
    other = runs.read_settings(f"{CONFIG}:dpo", model__name=tiny_model, **{**SAVED, "data__length": 48})
    DPORun(other, tmp_path / "first")  # the same pairs, in other rows
    assert len(asked) == 1
    changed = runs.read_settings(f"{CONFIG}:dpo", model__name=tiny_model, **{**SAVED, "data__eval_rows": 10})
    DPORun(changed, tmp_path / "first")
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("dpo", {"loss__beta": 0}, r"config\.loss\.beta must be above 0"),
        ("dpo", {"loss__type": "ppo"}, r"config\.loss\.type must be one of"),
        ("dpo", {"loss__label_smoothing": 0.5}, r"config\.loss\.label_smoothing must be from 0 to below 0\.5"),
        ("reward_model", {"loss__center_coefficient": -1}, r"config\.loss\.center_coefficient must be 0 or more"),
        ("dpo", {"data__length": 3}, r"config\.data\.length must be at least 4 for pairs"),
    ],
)
def test_a_mistake_is_named(
    stage: str, changes: dict[str, Any], message: str, tiny_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(tmp_path, tiny_model, stage, **changes)
