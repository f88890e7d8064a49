"""What steers sampling and the loss of a GRPO run, on real rollouts of the tiny model, seen in metrics and samples."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.core.metrics import read_rows
from r1jax.rl.policy_judge import Judge
from tests.stages.runs import Rows, read_params, train, untimed

G = 8
SHORT = {"data__eval_problems": 0, "log__tensorboard": False}
ODD = '{"odd": {"function": "tests.stages.letters:odd_reward"}}'
SAME = '{"same": {"function": "tests.stages.letters:constant_reward"}}'


def read_groups(workdir: pathlib.Path, step: int) -> list[Rows]:
    rows = [row for row in read_rows(workdir / "samples.jsonl") if row["step"] == step and "call_of" not in row]
    return [rows[at : at + G] for at in range(0, len(rows), G)]


def has_spread(group: Rows) -> bool:
    return np.std([row["reward"] for row in group], ddof=1) >= 1e-3


# --- Dynamic sampling ---


def test_groups_without_spread_are_dropped_and_others_asked(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    rows = train(tmp_path / "run", tiny_model, steps=2, rewards=ODD, dynamic_sampling__max_rounds=6, **SHORT)
    asked = 0
    for row in rows:
        groups = read_groups(tmp_path / "run", row["step"])
        spread = [has_spread(group) for group in groups]
        trained = [any(sample["advantage"] for sample in group) for group in groups]
        assert trained == spread and sum(spread) == 4
        assert row["dynamic_sampling/dropped"] == len(groups) - 4 > 0
        assert 1 < row["dynamic_sampling/rounds"] <= 6 and row["dynamic_sampling/unfilled"] == 0
        assert row["frac_reward_zero_std"] == pytest.approx(1 - np.mean(spread))
        assert row["grad_norm"] > 0
        lengths = [[sample["length"] for sample in group] for group in groups]
        assert row["completions/mean_length"] == pytest.approx(np.mean(lengths))
        asked += len(groups)
    prompts = [group[0]["prompt"] for step in (1, 2) for group in read_groups(tmp_path / "run", step)]
    assert len(set(prompts)) == asked  # the data is not at its end yet: new prompts each time
    assert sum(row["dynamic_sampling/dropped"] for row in rows) == asked - 8


def test_dynamic_sampling_has_an_end(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    """Where no prompt has spread, the step goes on with what it has."""
    (row,) = train(tmp_path / "run", tiny_model, steps=1, rewards=SAME, dynamic_sampling__max_rounds=3, **SHORT)
    assert row["dynamic_sampling/rounds"] == 3
    assert (row["dynamic_sampling/dropped"], row["dynamic_sampling/unfilled"]) == (8, 4)
    assert row["grad_norm"] == row["loss"] == 0 and row["entropy"] > 3
    assert len(read_groups(tmp_path / "run", 1)) == 12


# --- Overlong filtering ---


def test_truncated_completions_take_no_part_under_overlong_filtering(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    """On-policy the loss is minus the token mean of advantages, over what ended by itself alone."""
    longer = {"rollout__max_new_tokens": 40, "steps": 1, **SHORT}  # a tiny model rarely stops
    (row,) = train(tmp_path / "run", tiny_model, dynamic_sampling__filter_truncated=True, **longer)
    samples = [sample for group in read_groups(tmp_path / "run", 1) for sample in group]
    ended = [sample for sample in samples if sample["finish_reason"] == "stop"]
    assert 0 < len(ended) < 32
    assert row["completions/filtered_ratio"] == row["completions/clipped_ratio"] == 1 - len(ended) / 32
    assert all(sample["advantage"] == 0 for sample in samples if sample["finish_reason"] == "length")
    expected = sum(sample["advantage"] * sample["length"] for sample in ended) / sum(s["length"] for s in ended)
    assert row["loss"] == pytest.approx(-expected, abs=1e-6)


def test_nothing_is_learnt_where_everything_is_truncated(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    (row,) = train(tmp_path / "run", tiny_model, steps=1, dynamic_sampling__filter_truncated=True, **SHORT)
    assert row["completions/filtered_ratio"] == 1 and row["frac_reward_zero_std"] == 0
    assert row["loss"] == row["grad_norm"] == 0
    assert all(sample["advantage"] == 0 for group in read_groups(tmp_path / "run", 1) for sample in group)


# --- Schedules, pools, a moving reference, all in one run that is stopped and resumed ---

STEERED = {
    "steps": 4,
    "data__args__high": 3,  # few problems: they come back
    "rollout__max_new_tokens_schedule": "((1, 2), (3, 8))",
    "rollout__temperature_schedule": "((1, 1.3), (3, 0.7))",
    "curriculum__skip": 0.9,
    "curriculum__low": 0.12,
    "curriculum__reward": "letters_reward",
    "loss__kl_coefficient": 0.1,
    "reference__every_updates": 2,
    "reference__mixing": 0.5,
    "dynamic_sampling__max_rounds": 2,
    "checkpoint__every_steps": 1,
    "optimizer__schedule": "constant",
}


@pytest.fixture(scope="module")
def steered(tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("steered") / "run"
    train(workdir, tiny_model, **STEERED, **SHORT)
    return workdir


def test_the_limit_grows_and_the_temperature_falls(steered: pathlib.Path):
    rows = read_rows(steered / "metrics.jsonl")
    assert [row["rollout/limit"] for row in rows] == [2, 2, 8, 8]
    assert [row["rollout/temperature"] for row in rows] == pytest.approx([1.3, 1.0, 0.7, 0.7])
    for row in rows:
        lengths = [sample["length"] for group in read_groups(steered, row["step"]) for sample in group]
        assert max(lengths) == row["rollout/limit"]
        assert 0 < row["sampling/sampling_logp_difference/mean"] < 1e-5  # the trainer follows the sampler


def test_prompts_that_are_too_easy_or_too_hard_are_passed_over(steered: pathlib.Path):
    rows = read_rows(steered / "metrics.jsonl")
    rates: dict[str, float] = {}
    for row in rows:
        for group in read_groups(steered, row["step"]):
            rates[group[0]["prompt"]] = np.mean([sample["rewards"]["letters_reward"] for sample in group])
        extreme = [rate <= 0.12 for rate in rates.values()]
        assert row["pools/known"] == len(rates)
        assert row["pools/hard"] == pytest.approx(np.mean(extreme)) and row["pools/easy"] == 0
    assert rows[0]["pools/passed_over"] == 0 < sum(row["pools/passed_over"] for row in rows)


def test_a_steered_run_resumes_bit_for_bit(steered: pathlib.Path, tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    """The reference half way between policy and start, the rates of the pools, the schedules: all go on."""
    for steps in (1, 3, 4):
        train(tmp_path / "run", tiny_model, **{**STEERED, "steps": steps}, **SHORT)
    one, other = (read_rows(workdir / "metrics.jsonl") for workdir in (tmp_path / "run", steered))
    assert untimed(one) == untimed(other)
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == (steered / "samples.jsonl").read_bytes()
    found, expected = read_params(tmp_path / "run"), read_params(steered)
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_the_reference_is_reset(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    """KL begins at nothing again; mixed half way it does not, and without a reset it goes on growing."""
    changes = {"steps": 3, "loss__kl_coefficient": 0.01, **SHORT}
    runs = {
        "reset": train(tmp_path / "reset", tiny_model, reference__every_updates=2, **changes),
        "mixed": train(tmp_path / "mixed", tiny_model, reference__every_updates=2, reference__mixing=0.5, **changes),
        "kept": train(tmp_path / "kept", tiny_model, **changes),
    }
    kl = {name: [row["kl"] for row in rows] for name, rows in runs.items()}
    assert kl["reset"][:2] == kl["mixed"][:2] == kl["kept"][:2] and kl["kept"][1] > 1e-4
    assert kl["reset"][2] < 1e-10 < 0.1 * kl["kept"][2] < kl["mixed"][2] < 0.9 * kl["kept"][2]
    assert [row["reference/age_updates"] for row in runs["reset"]] == [1, 0, 1]


# --- Losses ---


def test_kl_in_the_reward(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    """The sum over a completion is taken off its reward before the advantages; the loss has no term of it."""
    changes = {"steps": 2, "loss__kl_in": "reward", "loss__kl_estimator": "k1", "loss__kl_coefficient": 0.5}
    first, second = train(tmp_path / "run", tiny_model, **changes, **SHORT)
    assert abs(first["kl"]) < 1e-5 < 1e-3 < abs(second["kl"])
    for row in (first, second):
        groups = read_groups(tmp_path / "run", row["step"])
        total = sum(s["advantage"] * s["length"] for group in groups for s in group)
        assert row["loss"] == pytest.approx(-total / sum(s["length"] for group in groups for s in group), abs=1e-6)
    rewards = np.array([[s["reward"] for s in group] for group in read_groups(tmp_path / "run", 2)])
    advantages = np.array([[s["advantage"] for s in group] for group in read_groups(tmp_path / "run", 2)])
    plain = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    assert not np.allclose(advantages, plain, atol=1e-3)


def test_a_sampler_that_agrees_needs_no_correction(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    changes = {"steps": 2, "train__updates_per_step": 2, **SHORT}
    corrected = train(tmp_path / "corrected", tiny_model, loss__importance_correction="sequence_mask", **changes)
    plain = train(tmp_path / "plain", tiny_model, **changes)
    for one, other in zip(corrected, plain, strict=True):
        assert one["correction/weight_mean"] == pytest.approx(1, abs=1e-4) and one["correction/outside_mean"] == 0
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("preset", ["gspo", "reinforce++"])
def test_presets_learn(tiny_model: pathlib.Path, tmp_path: pathlib.Path, preset: str):
    changes = {"loss": f'{{"preset": "{preset}"}}', "train__updates_per_step": 2, "steps": 6, **SHORT}
    rows = train(tmp_path / "run", tiny_model, optimizer__learning_rate=5e-3, **changes)
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.1
    assert all(np.isfinite(row["grad_norm"]) and "kl" not in row for row in rows)


def test_soft_overlong_punishment(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    """DAPO's penalty is a reward: nothing up to 4 tokens, then falling to -1 at 8."""
    punish = '"soft_overlong_punishment": {"weight": 1.0, "max_completion_len": 8, "soft_punish_cache": 4}'
    rewards = f'{{"letters": {{"function": "tests.stages.letters:letters_reward"}}, {punish}}}'
    (row,) = train(tmp_path / "run", tiny_model, steps=1, rewards=rewards, **SHORT)
    samples = [sample for group in read_groups(tmp_path / "run", 1) for sample in group]
    (name,) = {key for sample in samples for key in sample["rewards"]} - {"letters_reward"}
    for sample in samples:
        assert sample["rewards"][name] == pytest.approx(-max(0, sample["length"] - 4) / 4)
    assert row[f"rewards/{name}/mean"] == pytest.approx(np.mean([s["rewards"][name] for s in samples]))


# --- Adapters ---


def test_adapters_learn_and_nothing_else_does(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    """The engine samples with them, as the trainer computes; the reference is the model without what was learnt."""
    changes = {"lora__rank": 4, "loss__kl_coefficient": 0.01, "optimizer__learning_rate": 2e-2, **SHORT}
    changes |= {"checkpoint__every_steps": 1, "optimizer__schedule": "constant"}
    rows = train(tmp_path / "whole", tiny_model, steps=3, **changes)
    params = read_params(tmp_path / "whole")
    assert len(params) == 2 * 7 * 2 and all(name.endswith(("['a']", "['b']")) for name in params)
    assert any(value.any() for name, value in params.items() if name.endswith("['b']"))
    assert rows[0]["kl"] < 1e-10 < 1e-6 < rows[2]["kl"]
    for row in rows:
        assert row["grad_norm"] > 0 and 0 < row["sampling/sampling_logp_difference/mean"] < 1e-5
    for steps in (2, 3):
        again = train(tmp_path / "parts", tiny_model, steps=steps, **changes)
    assert untimed(again) == untimed(rows)


def test_a_rate_of_biases_that_are_not_there_is_refused(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    with pytest.raises(UserError, match=r"config\.train\.bias_rate must be 0 where no correction biases .*, got 0\.1"):
        train(tmp_path / "run", tiny_model, train__bias_rate=0.1)


# --- The policy as its own judge ---

RANKED = (
    '{"self_rank_reward": {"weight": 1.0, "judgements": 1, "drop_bottom": true, "compare_to": "letters"}, '
    '"letters": {"weight": 0.0, "function": "tests.stages.letters:letters_reward"}}'
)


def test_the_policy_is_asked_to_rank_its_answers(tiny_model: pathlib.Path, tmp_path: pathlib.Path):
    """A tiny model's rankings cannot be read: no reward, and no gradient; the calls are on file, apart."""
    (row,) = train(tmp_path / "run", tiny_model, steps=1, rewards=RANKED, **SHORT)
    calls = [sample for sample in read_rows(tmp_path / "run" / "samples.jsonl") if "call_of" in sample]
    assert len(calls) == row["rewards/self_rank_reward/judgements"] == 4
    assert row["rewards/self_rank_reward/readable"] == 0 == row["grad_norm"]
    for call in calls:
        assert (call["call_of"], call["kind"], call["places"]) == ("self_rank_reward", "ranking", None)
        assert "best to worst" in call["prompt"] and isinstance(call["completion"], str)
    assert len(read_groups(tmp_path / "run", 1)) == 4


def test_ranks_become_rewards_and_the_bottom_leaves_the_loss(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    def rank_as_shown(judge: Judge, prompts: Sequence[Any]) -> list[str]:
        return ["Ranking: 1 > 2 > 3 > 4 > 5 > 6 > 7 > 8"] * len(prompts)

    monkeypatch.setattr(Judge, "__call__", rank_as_shown)
    (row,) = train(tmp_path / "run", tiny_model, steps=1, rewards=RANKED, **SHORT)
    assert row["rewards/self_rank_reward/readable"] == 1 and row["grad_norm"] > 0
    assert 0 <= row["rewards/self_rank_reward/agreement"] <= 1
    for group in read_groups(tmp_path / "run", 1):
        ranks = np.array([sample["rewards"]["self_rank_reward"] for sample in group])
        advantages = np.array([sample["advantage"] for sample in group])
        others = ranks > ranks.min()
        assert sorted(set(ranks)) == pytest.approx(np.linspace(0, 1, len(set(ranks))))
        assert (advantages[~others] == 0).all()  # out of the loss, and out of the mean of the others
        assert advantages[others].sum() == pytest.approx(0, abs=1e-6)


# --- Entropy and off-policy masks ---

ENTROPIC = {
    "steps": 2,
    "loss__preset": "sapo",
    "loss__aggregation": "sequence",
    "loss__top_entropy_quantile": 0.25,
    "loss__entropy_target": 50.0,
    "loss__entropy_coefficient_delta": 0.05,
    "loss__off_policy_mask_threshold": 0.001,
    "train__updates_per_step": 2,
    "optimizer__schedule": "constant",
}


def test_tokens_of_high_entropy_are_those_of_the_update_and_the_bonus_goes_on_after_a_stop(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path
):
    """The selection is the same in micro-batches of any size, and its entropy above that of all tokens."""
    whole = train(tmp_path / "whole", tiny_model, checkpoint__every_steps=1, **ENTROPIC, **SHORT)
    cut = train(tmp_path / "cut", tiny_model, train__micro_batch_size=4, **{**ENTROPIC, "steps": 1}, **SHORT)
    assert all(row["entropy_selected"] > row["entropy"] for row in whole)
    for name in ("loss", "grad_norm", "entropy_selected", "off_policy/masked_mean"):
        assert cut[0][name] == pytest.approx(whole[0][name], rel=1e-4, abs=1e-7), name
    assert [row["entropy_coefficient"] for row in whole] == pytest.approx([0.1, 0.2])  # below the target always
    stopped = tmp_path / "stopped"
    train(stopped, tiny_model, **{**ENTROPIC, "steps": 1}, checkpoint__every_steps=1, **SHORT)
    resumed = train(stopped, tiny_model, checkpoint__every_steps=1, **ENTROPIC, **SHORT)
    assert untimed(resumed) == untimed(whole)
