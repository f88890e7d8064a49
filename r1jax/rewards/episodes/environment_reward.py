"""The reward that an environment gives itself, by its method `get_reward`."""

from collections.abc import Sequence


def environment_reward(completions: Sequence[object], payments: Sequence[float | None]) -> list[float | None]:
    """The result of `get_reward` of each trajectory's environment; does not apply where there is none."""
    return list(payments)
