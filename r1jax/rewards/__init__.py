"""Rewards for RL: functions of completions and data columns, by TRL's and open-r1's names, imported when asked for."""

from typing import Any

from r1jax.rewards.registry import REWARDS, get_reward_funcs, import_place

_PLACES = {place.partition(":")[2]: place for place in REWARDS.values()} | {
    name: f"r1jax.rewards.base:{name}" for name in ("load_rewards", "score")
}
__all__ = sorted([*_PLACES, get_reward_funcs.__name__])


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_place(_PLACES[name])
