"""open-r1's registry by name, and r1jax.rewards as the one place to import from."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import r1jax.rewards
from r1jax.core.errors import UserError
from r1jax.rewards import get_reward_funcs, load_rewards, score
from r1jax.rewards.registry import REWARDS, import_place

ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    "accuracy": "accuracy_reward",
    "format": "format_reward",
    "reasoning_steps": "reasoning_steps_reward",
    "cosine": "cosine_scaled_reward",
    "repetition_penalty": "repetition_penalty_reward",
    "length": "len_reward",
    "tag_count": "tag_count_reward",
    "code_format": "code_format_reward",
    "soft_overlong_punishment": "soft_overlong_punishment_reward",
    "code": "code_reward",
    "binary_code": "binary_code_reward",
    "ioi_code": "ioi_code_reward",
    "cf_code": "cf_code_reward",
}
# The attributes of open-r1's script arguments, with its defaults.
DEFAULTS = {
    "cosine_min_value_wrong": 0.0,
    "cosine_max_value_wrong": -0.5,
    "cosine_min_value_correct": 0.5,
    "cosine_max_value_correct": 1.0,
    "cosine_max_len": 1000,
    "repetition_n_grams": 3,
    "repetition_max_penalty": -1.0,
    "code_language": "python",
    "max_completion_len": 16384,
    "soft_punish_cache": 4096,
    "code_eval_test_batch_size": 1,
    "code_eval_scoring_mode": "weighted_sum",
    "parallel_code_exec_per_proc": 2,
    "code_provider": "local",
    "ioi_provider": "local",
}


def test_functions_by_open_r1s_names():
    rewards = get_reward_funcs(SimpleNamespace(reward_funcs=list(NAMES), **DEFAULTS))
    assert [reward.__name__ for reward in rewards] == list(NAMES.values())
    assert [reward.__name__ for reward in get_reward_funcs(SimpleNamespace(reward_funcs=list(NAMES)))] == list(
        NAMES.values()
    )


def test_arguments_come_from_open_r1s_attributes():
    names = ["cosine", "repetition_penalty", "soft_overlong_punishment", "code_format"]
    changes = {
        "cosine_max_value_wrong": -0.25,
        "repetition_n_grams": 2,
        "max_completion_len": 10,
        "code_language": "cpp",
    }
    args = SimpleNamespace(reward_funcs=names, **DEFAULTS | changes | {"soft_punish_cache": 4})
    cosine, repetition, overlong, code_format = get_reward_funcs(args)
    assert cosine([r"\boxed{8}" + "x" * 2000], ["$7$"]) == [-0.25]
    assert repetition(["a a a"]) == [-0.5]
    assert overlong([[1] * 8]) == [-0.5]
    assert code_format(["<think>\nx\n</think>\n<answer>\n```cpp\n```\n</answer>"]) == [1.0]


def test_an_unknown_name_is_one_clear_line():
    with pytest.raises(UserError, match="reward_funcs: each must be one of accuracy, .*got 'acuracy'"):
        get_reward_funcs(SimpleNamespace(reward_funcs=["acuracy"]))


def test_everything_is_imported_from_one_place():
    for name in r1jax.rewards.__all__:
        assert getattr(r1jax.rewards, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        r1jax.rewards.nothing  # noqa: B018


def test_the_package_loads_its_table_alone_until_asked():
    code = "import r1jax.rewards, sys; print(*[m for m in sys.modules if m.startswith('r1jax.rewards.')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["r1jax.rewards.registry"]


def test_a_reward_is_one_line_of_the_table(tmp_path, monkeypatch):
    code = "def toy_reward(completions, **columns):\n    return [float(len(text)) for text in completions]\n"
    (tmp_path / "toy_rewards.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(REWARDS, "toy", "toy_rewards:toy_reward")
    (reward,) = load_rewards({"toy": 0.5})
    scores = score([reward], prompts=["", ""], completions=["a", "bbb"], completion_ids=[[1], [1]], columns={})
    assert scores.total.tolist() == [0.5, 1.5] and list(scores.by_name) == ["toy_reward"]
    with pytest.raises(UserError, match="unknown reward 'toi'; did you mean toy"):
        load_rewards({"toi": 0.5})


def test_the_table_names_functions_that_are_there():
    for place in REWARDS.values():
        assert import_place(place).__name__ == place.partition(":")[2]
