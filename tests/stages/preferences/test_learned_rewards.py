"""Runs on learned rewards: GRPO by a real reward model and by a DPO model; preferences from a model's samples."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.core.metrics import read_rows
from r1jax.core.sharding import make_mesh, use_mesh
from r1jax.data.examples import Example, encode_row
from r1jax.data.preferences.pairs import append_last
from r1jax.stages import rejection_sampling
from r1jax.stages.collection import SET_FILE
from r1jax.weights.pretrained import load_pretrained
from tests.stages import runs
from tests.stages.runs import assert_same_run, train, untimed

CONFIG = pathlib.Path(__file__).with_name("tiny_preferences.py")
LEARNED = CONFIG.with_name("tiny_learned.py")
TRAINED = {"steps": 12, "data__eval_rows": 0, "log__tensorboard": False}
SAVED = {"steps": 6, "checkpoint__every_steps": 2}


@pytest.fixture(scope="module")
def scores(tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A reward model that prefers lower-case letters."""
    workdir = tmp_path_factory.mktemp("scores") / "run"
    train(workdir, tiny_model, config=f"{CONFIG}:reward_model", **TRAINED)
    return workdir


@pytest.fixture(scope="module")
def reinforced(
    scores: pathlib.Path, tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The workdir of a run that was never stopped."""
    workdir = tmp_path_factory.mktemp("reinforced") / "run"
    train(workdir, tiny_model, config=f"{LEARNED}:scores={scores}", **SAVED)
    return workdir


def encode(row: dict[str, Any], text: str, tokenizer: Any) -> Example:
    (example,) = encode_row({"prompt": row["prompt"], "completion": text}, tokenizer)
    return example


def make_rate(folder: pathlib.Path) -> Callable[[dict[str, Any], str], float]:
    """The score of a text after a row's prompt, by a forward pass of its own."""
    model, tokenizer = load_pretrained(folder)

    def rate(row: dict[str, Any], text: str) -> float:
        tokens = append_last(encode(row, text, tokenizer)).tokens[None]
        return float(model.rate(model.hidden(tokens).hidden)[0, -1])

    return rate


def test_grpo_is_paid_the_scores_of_a_real_reward_model(reinforced: pathlib.Path, scores: pathlib.Path) -> None:
    rate, rows = make_rate(scores), read_rows(reinforced / "metrics.jsonl")
    samples = [row for row in read_rows(reinforced / "samples.jsonl") if row["step"] == 1]
    assert len(samples) == 32
    for row in samples[::5]:
        assert row["rewards"]["reward_model"] == pytest.approx(rate(row, row["completion"]), rel=1e-5, abs=1e-5)
    mean = np.mean([row["rewards"]["reward_model"] for row in samples])
    assert rows[0]["rewards/reward_model/mean"] == pytest.approx(mean, abs=1e-6)
    assert rows[0]["reward"] == pytest.approx(mean, abs=1e-6)


@pytest.mark.slow
def test_a_learned_reward_rises(scores: pathlib.Path, tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    rows = train(tmp_path / "run", tiny_model, config=f"{LEARNED}:scores={scores}", steps=24)
    told = [row["rewards/reward_model/mean"] for row in rows]
    assert np.mean(told[-6:]) > np.mean(told[:6]) + 0.1


def test_stopped_and_started_again_it_ends_bit_for_bit_the_same(
    reinforced: pathlib.Path, scores: pathlib.Path, tiny_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for changes in ({**SAVED, "steps": 2}, SAVED):
        train(tmp_path / "run", tiny_model, config=f"{LEARNED}:scores={scores}", **changes)
    assert_same_run(tmp_path / "run", reinforced)


@pytest.mark.slow
def test_eight_devices_are_one(
    reinforced: pathlib.Path, scores: pathlib.Path, tiny_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    mesh = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "train__micro_batch_size": 4}
    rows = train(tmp_path / "run", tiny_model, 8, config=f"{LEARNED}:scores={scores}", steps=1, **mesh)
    for name, value in untimed(read_rows(reinforced / "metrics.jsonl"))[0].items():
        assert rows[0][name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


def test_work_has_that_of_scores(reinforced: pathlib.Path, tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    plain = train(tmp_path / "run", tiny_model, steps=1, data__eval_problems=0)[0]["flops"]
    assert 1.05 < read_rows(reinforced / "metrics.jsonl")[0]["flops"] / plain < 2


def test_the_reward_that_a_dpo_model_implies_is_its_log_ratio(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    train(tmp_path / "dpo", tiny_model, config=f"{CONFIG}:dpo", **TRAINED)
    config = f"{LEARNED}:scores={tmp_path / 'dpo'},reference={tiny_model}"
    rows = train(tmp_path / "run", tiny_model, config=config, steps=6)
    models = [load_pretrained(folder)[0] for folder in (tmp_path / "dpo", tiny_model)]
    tokenizer = load_pretrained(tiny_model)[1]
    samples = [row for row in read_rows(tmp_path / "run" / "samples.jsonl") if row["step"] == 1]
    for row in samples[::8]:
        example = encode(row, row["completion"], tokenizer)
        said = example.weights > 0
        ours, theirs = (
            jax.nn.log_softmax(model(example.tokens[None])[0])[np.arange(len(said)), example.targets][said].sum()
            for model in models
        )
        assert row["rewards"]["reward_model"] == pytest.approx(0.5 * float(ours - theirs), rel=1e-4, abs=1e-4)
    assert rows[-1]["rewards/reward_model/mean"] > rows[0]["rewards/reward_model/mean"]


# --- Preferences from samples ---


def collect(workdir: pathlib.Path, model: pathlib.Path, arg: str = "", **changes: Any) -> list[dict[str, Any]]:
    """The pairs of a collection."""
    settings = runs.read_settings(f"{LEARNED}:stage=rejection_sampling{arg}", model__name=model, **changes)
    with use_mesh(make_mesh(settings.mesh, jax.devices()[:1])):
        rejection_sampling.run(settings, workdir)
    return [json.loads(line) for line in (workdir / SET_FILE).read_text().splitlines()]


def read_samples(workdir: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "traces.jsonl").read_text().splitlines()]


def test_the_best_and_the_worst_of_a_group_by_a_reward_model_are_pairs_to_learn_from(
    scores: pathlib.Path, tiny_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    rows = collect(tmp_path / "run", tiny_model, f",scores={scores}")
    rate, groups = make_rate(scores), {row["prompt"]: row for row in read_samples(tmp_path / "run")}
    assert 2 <= len(rows) <= 16
    for row in rows[:4]:
        group = groups[row["prompt"]]
        texts = [t for t, why in zip(group["completions"], group["finish_reasons"], strict=True) if why == "stop"]
        values = [rate(row, text) for text in texts]
        assert row["score_chosen"] == pytest.approx(max(values), rel=1e-4, abs=1e-4)
        assert row["score_rejected"] == pytest.approx(min(values), rel=1e-4, abs=1e-4)
        assert row["chosen"] in texts and row["rejected"] in texts
    changes = {"data__sources__letters__path": tmp_path / "run" / SET_FILE, "data__eval_rows": 0, "steps": 4}
    told = train(tmp_path / "dpo", tiny_model, config=f"{CONFIG}:dpo", **changes)
    assert told[-1]["rewards/margins"] > 0


def judge_by(monkeypatch: pytest.MonkeyPatch, choose: Callable[[Sequence[str]], str]) -> list[tuple[str, ...]]:
    """Puts a rule in place of the judge's reply; the list gets what was shown."""
    shown: list[tuple[str, ...]] = []

    def answer(judge: Any, prompts: Sequence[str]) -> list[str]:
        texts = [tuple(line for line in prompt.splitlines() if line[:3] in ("1. ", "2. ")) for prompt in prompts]
        shown.extend(texts)
        return [choose([line[3:] for line in pair]) for pair in texts]

    monkeypatch.setattr("r1jax.rl.policy_judge.Judge.__call__", answer)
    return shown


CERTAIN = {"generate__num_samples": 2, "pairs__min_gap": 1.0}


def test_a_judge_orders_pairs_and_is_asked_in_both_orders(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = judge_by(monkeypatch, lambda texts: "1 > 2" if texts[0] < texts[1] else "2 > 1")
    rows = collect(tmp_path / "run", tiny_model, **CERTAIN)
    assert rows and all(row["score_chosen"] == 1 and row["score_rejected"] == 0 for row in rows)
    assert all((f"1. {other[3:]}", f"2. {one[3:]}") in shown for one, other in shown)


def test_a_judge_that_prefers_what_stands_first_orders_no_pair(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_by(monkeypatch, lambda texts: "1 > 2")
    with pytest.raises(UserError, match=r"rewards differ by config\.pairs\.min_gap = 1\.0: take more samples"):
        collect(tmp_path / "run", tiny_model, **CERTAIN)


@pytest.mark.slow
def test_the_sampled_model_itself_is_asked(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """It has no idea; what it says is the same in a collection that was stopped."""
    with pytest.raises(UserError, match="none of the teacher's|no prompt has two samples"):
        collect(tmp_path / "run", tiny_model, generate__num_samples=2, filters__min_reward=2.0)
    scored = (tmp_path / "run" / "traces.scores.jsonl").read_text()
    (tmp_path / "run" / "traces.scores.jsonl").write_text("".join(scored.splitlines(keepends=True)[:5]))
    with pytest.raises(UserError):
        collect(tmp_path / "run", tiny_model, generate__num_samples=2, filters__min_reward=2.0)
    assert (tmp_path / "run" / "traces.scores.jsonl").read_text() == scored


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generate__num_samples": 1}, r"config\.pairs\.per_prompt needs config\.generate\.num_samples of at least 2"),
        ({"filters__samples_per_prompt": 2}, r"config\.filters\.samples_per_prompt must be 0 with config\.pairs"),
        ({"pairs__min_gap": -1}, r"config\.pairs\.min_gap must be at least 0"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], message: str, tiny_model: pathlib.Path) -> None:
    with pytest.raises(UserError, match=message):
        runs.read_settings(f"{LEARNED}:stage=rejection_sampling", model__name=tiny_model, **changes)
