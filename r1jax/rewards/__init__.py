"""Rewards for RL: functions of completions and data columns, by TRL's and open-r1's names, imported when asked for."""

import importlib
from typing import Any

_HOMES = {
    "answers": ("accuracy_reward", "answer_reward", "number_reward"),
    "code": ("binary_code_reward", "code_reward"),
    "contests": ("cf_code_reward", "ioi_code_reward"),
    "base": ("load_rewards", "score"),
    "judge": ("get_judge_reward",),
    "language_consistency": ("language_consistency_reward",),
    "lengths": ("get_cosine_scaled_reward", "get_soft_overlong_punishment", "len_reward"),
    "prose": ("get_repetition_penalty_reward", "reasoning_steps_reward"),
    "registry": ("get_reward_funcs",),
    "self_rank": ("get_self_rank_reward",),
    "tags": ("format_reward", "get_code_format_reward", "r1_format_reward", "tag_count_reward"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
