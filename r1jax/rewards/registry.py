"""Registry of rewards by their names in a config, and open-r1's `get_reward_funcs`.

Each reward is listed under its name in the code and, if open-r1's recipes use a shorter one, under that too.
"""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from r1jax.core.errors import UserError

# name in a config -> module:function, imported on first use. A function whose name begins with `get_` is a maker:
# called once with the config's arguments, it returns the reward.
REWARDS = {
    "accuracy": "r1jax.rewards.answers:accuracy_reward",
    "accuracy_reward": "r1jax.rewards.answers:accuracy_reward",
    "answer_reward": "r1jax.rewards.answers:answer_reward",
    "binary_code": "r1jax.rewards.code:binary_code_reward",
    "binary_code_reward": "r1jax.rewards.code:binary_code_reward",
    "cf_code": "r1jax.rewards.contests:cf_code_reward",
    "cf_code_reward": "r1jax.rewards.contests:cf_code_reward",
    "code": "r1jax.rewards.code:code_reward",
    "code_format": "r1jax.rewards.tags:get_code_format_reward",
    "code_format_reward": "r1jax.rewards.tags:get_code_format_reward",
    "code_reward": "r1jax.rewards.code:code_reward",
    "cosine": "r1jax.rewards.lengths:get_cosine_scaled_reward",
    "cosine_scaled_reward": "r1jax.rewards.lengths:get_cosine_scaled_reward",
    "environment_reward": "r1jax.rewards.episodes.environment_reward:environment_reward",
    "format": "r1jax.rewards.tags:format_reward",
    "format_reward": "r1jax.rewards.tags:format_reward",
    "ioi_code": "r1jax.rewards.contests:ioi_code_reward",
    "ioi_code_reward": "r1jax.rewards.contests:ioi_code_reward",
    "judge_reward": "r1jax.rewards.judge:get_judge_reward",
    "language_consistency_reward": "r1jax.rewards.language_consistency:language_consistency_reward",
    "len_reward": "r1jax.rewards.lengths:len_reward",
    "length": "r1jax.rewards.lengths:len_reward",
    "number_reward": "r1jax.rewards.answers:number_reward",
    "r1_format_reward": "r1jax.rewards.tags:r1_format_reward",
    "reasoning_steps": "r1jax.rewards.prose:reasoning_steps_reward",
    "reasoning_steps_reward": "r1jax.rewards.prose:reasoning_steps_reward",
    "repetition_penalty": "r1jax.rewards.prose:get_repetition_penalty_reward",
    "repetition_penalty_reward": "r1jax.rewards.prose:get_repetition_penalty_reward",
    "request_score": "r1jax.rewards.learned.request_score:request_score",
    "reward_model": "r1jax.rewards.learned.learned_reward:get_reward_model",
    "self_rank_reward": "r1jax.rewards.self_rank:get_self_rank_reward",
    "soft_overlong_punishment": "r1jax.rewards.lengths:get_soft_overlong_punishment",
    "tag_count": "r1jax.rewards.tags:tag_count_reward",
    "tag_count_reward": "r1jax.rewards.tags:tag_count_reward",
}

# The rewards of open-r1's recipes, each with the names of its arguments among open-r1's script arguments.
_CODE_ARGUMENTS = {
    "num_parallel": "parallel_code_exec_per_proc",
    "provider_type": "code_provider",
    "enforce_same_language": "enforce_same_language",
}
OPEN_R1_ARGUMENTS: dict[str, dict[str, str]] = {
    "accuracy": {},
    "binary_code": _CODE_ARGUMENTS,
    "cf_code": {"test_batch_size": "code_eval_test_batch_size", "scoring_mode": "code_eval_scoring_mode"},
    "code": _CODE_ARGUMENTS,
    "code_format": {"language": "code_language"},
    "cosine": {
        "min_value_wrong": "cosine_min_value_wrong",
        "max_value_wrong": "cosine_max_value_wrong",
        "min_value_correct": "cosine_min_value_correct",
        "max_value_correct": "cosine_max_value_correct",
        "max_len": "cosine_max_len",
    },
    "format": {},
    "ioi_code": {"test_batch_size": "code_eval_test_batch_size", "provider_type": "ioi_provider"},
    "length": {},
    "reasoning_steps": {},
    "repetition_penalty": {"ngram_size": "repetition_n_grams", "max_penalty": "repetition_max_penalty"},
    "soft_overlong_punishment": {"max_completion_len": "max_completion_len", "soft_punish_cache": "soft_punish_cache"},
    "tag_count": {},
}


# Functions given as objects (r1jax.run), by the `module:name` that config.json records: some cannot be imported.
GIVEN: dict[str, Callable[..., Any]] = {}


def name_rewards(rewards: Any) -> dict[str, Any]:
    """The `rewards` section of a config, for one that holds function objects.

    rewards: a function or name, a list of them, or a dict from them to a weight or settings; settings, or the value
    itself, may be a function too. Functions are kept in GIVEN. Raises UserError for a function without a name.
    """
    if not isinstance(rewards, Mapping):
        listed = rewards if isinstance(rewards, (list, tuple)) else [rewards]
        rewards = dict.fromkeys(listed, 1.0)
    named: dict[str, Any] = {}
    for key, value in rewards.items():
        settings = dict(value) if isinstance(value, Mapping) else {"function": value} if callable(value) else None
        function = key if callable(key) else (settings or {}).get("function")
        if not callable(function):
            named[key] = value
            continue
        settings = {"weight": value} if settings is None else settings
        name, place = _place(function)
        GIVEN[place] = function
        named[name if callable(key) else key] = {**settings, "function": place}
    return named


def _place(function: Callable[..., Any]) -> tuple[str, str]:
    """Name of a reward object, and its `module:name`."""
    inner = getattr(function, "func", function)  # of a partial
    known = inner if hasattr(inner, "__qualname__") else type(inner)
    if known.__name__ == "<lambda>":
        raise UserError("a reward needs a name, under which its values are logged: define it by def, not as a lambda")
    return known.__name__, f"{known.__module__}:{known.__qualname__}"


def import_place(place: str) -> Any:
    """The object `module:attribute`. Raises ImportError, AttributeError or ValueError (no module named)."""
    if place in GIVEN:
        return GIVEN[place]
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def get_reward_funcs(script_args: Any) -> list[Callable[..., Any]]:
    """The rewards named by `script_args.reward_funcs`, with arguments from open-r1's attribute names.

    A missing attribute leaves the argument at the function's default. Raises UserError for unknown names.
    """
    rewards: list[Callable[..., Any]] = []
    for name in script_args.reward_funcs:
        if name not in OPEN_R1_ARGUMENTS:
            raise UserError(f"reward_funcs: each must be one of {', '.join(OPEN_R1_ARGUMENTS)}, got {name!r}")
        attributes = OPEN_R1_ARGUMENTS[name]
        arguments = {
            key: getattr(script_args, source) for key, source in attributes.items() if hasattr(script_args, source)
        }
        function = import_place(REWARDS[name])
        if function.__name__.startswith("get_"):
            rewards.append(function(**arguments))
        else:
            rewards.append(functools.update_wrapper(functools.partial(function, **arguments), function))
    return rewards
