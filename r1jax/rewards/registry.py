"""The names that a config may use for rewards, and open-r1's `get_reward_funcs`.

Each reward has its name as in the code and, where open-r1's recipes know it by a shorter one, that too. A name that
begins with `get_` stands for a maker: called once with the config's arguments, it returns the reward.
"""

import functools
from collections.abc import Callable
from typing import Any

from r1jax.core.errors import UserError
from r1jax.rewards.answers import accuracy_reward, answer_reward, number_reward
from r1jax.rewards.code import binary_code_reward, code_reward
from r1jax.rewards.contests import cf_code_reward, ioi_code_reward
from r1jax.rewards.judge import get_judge_reward
from r1jax.rewards.language_consistency import language_consistency_reward
from r1jax.rewards.lengths import get_cosine_scaled_reward, get_soft_overlong_punishment, len_reward
from r1jax.rewards.prose import get_repetition_penalty_reward, reasoning_steps_reward
from r1jax.rewards.self_rank import get_self_rank_reward
from r1jax.rewards.tags import (
    format_reward,
    get_code_format_reward,
    r1_format_reward,
    tag_count_reward,
)

# Rewards, and makers of rewards.
RewardFunction = Callable[..., Any]

OPEN_R1: dict[str, RewardFunction] = {
    "accuracy": accuracy_reward,
    "binary_code": binary_code_reward,
    "cf_code": cf_code_reward,
    "code": code_reward,
    "code_format": get_code_format_reward,
    "cosine": get_cosine_scaled_reward,
    "format": format_reward,
    "ioi_code": ioi_code_reward,
    "length": len_reward,
    "reasoning_steps": reasoning_steps_reward,
    "repetition_penalty": get_repetition_penalty_reward,
    "soft_overlong_punishment": get_soft_overlong_punishment,
    "tag_count": tag_count_reward,
}
_OURS: tuple[RewardFunction, ...] = (
    answer_reward,
    get_judge_reward,
    get_self_rank_reward,
    language_consistency_reward,
    number_reward,
    r1_format_reward,
)
REGISTRY: dict[str, RewardFunction] = OPEN_R1 | {
    function.__name__.removeprefix("get_"): function for function in (*OPEN_R1.values(), *_OURS)
}

# Where open-r1's script arguments keep the arguments of its rewards.
_CODE_ARGUMENTS = {
    "num_parallel": "parallel_code_exec_per_proc",
    "provider_type": "code_provider",
    "enforce_same_language": "enforce_same_language",
}
_SCRIPT_ARGUMENTS = {
    "binary_code": _CODE_ARGUMENTS,
    "cf_code": {"test_batch_size": "code_eval_test_batch_size", "scoring_mode": "code_eval_scoring_mode"},
    "code": _CODE_ARGUMENTS,
    "ioi_code": {"test_batch_size": "code_eval_test_batch_size", "provider_type": "ioi_provider"},
    "code_format": {"language": "code_language"},
    "cosine": {
        "min_value_wrong": "cosine_min_value_wrong",
        "max_value_wrong": "cosine_max_value_wrong",
        "min_value_correct": "cosine_min_value_correct",
        "max_value_correct": "cosine_max_value_correct",
        "max_len": "cosine_max_len",
    },
    "repetition_penalty": {"ngram_size": "repetition_n_grams", "max_penalty": "repetition_max_penalty"},
    "soft_overlong_punishment": {"max_completion_len": "max_completion_len", "soft_punish_cache": "soft_punish_cache"},
}


def get_reward_funcs(script_args: Any) -> list[RewardFunction]:
    """The rewards that `script_args.reward_funcs` names, with their arguments taken from open-r1's attribute names.

    An attribute that is not there leaves the argument at the function's own default. Raises UserError on other names.
    """
    rewards: list[RewardFunction] = []
    for name in script_args.reward_funcs:
        if name not in OPEN_R1:
            raise UserError(f"reward_funcs: each must be one of {', '.join(OPEN_R1)}, got {name!r}")
        attributes = _SCRIPT_ARGUMENTS.get(name, {})
        arguments = {
            key: getattr(script_args, source) for key, source in attributes.items() if hasattr(script_args, source)
        }
        function = OPEN_R1[name]
        if function.__name__.startswith("get_"):
            rewards.append(function(**arguments))
        else:
            rewards.append(functools.update_wrapper(functools.partial(function, **arguments), function))
    return rewards
