"""A reward that fails costs its values: they do not apply, are counted, and shut gates; or the run ends, if strict."""

import math
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards import faults
from r1jax.rewards.base import Reward, score

TEXTS = ["a", "b", "c"]


def fair_reward(completions: list[str], **columns: Any) -> list[float]:
    return [1.0] * len(completions)


def raise_reward(completions: list[str], **columns: Any) -> list[float]:
    raise OverflowError("int too large\nto convert")


FAULTS = {
    "raised OverflowError: int too large to convert (": raise_reward,
    "must return one value a completion: 3, got 2": lambda completions, **columns: [1.0, 1.0],
    "must return finite numbers or None, got nan": lambda completions, **columns: [math.nan] * 3,
    "must return finite numbers or None, got inf": lambda completions, **columns: [math.inf] * 3,
    "must return finite numbers or None, got 1.0": lambda completions, **columns: ["1.0"] * 3,
    "must return finite numbers or None, got (1+0j)": lambda completions, **columns: [1 + 0j] * 3,
    "raised TypeError: 'int' object is not iterable": lambda completions, **columns: 7,
}


def run(rewards: list[Reward], **options: Any) -> Any:
    ids = [[1]] * 3
    return score(rewards, prompts=TEXTS, completions=TEXTS, completion_ids=ids, columns={}, **options)


@pytest.mark.parametrize(("message", "function"), FAULTS.items(), ids=range(len(FAULTS)))
@pytest.mark.parametrize("gate", [None, True, 0.5])
def test_a_fault_does_not_apply_is_counted_and_shuts_a_gate(
    message: str, function: Any, gate: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "_said", set())
    rewards = [Reward("fair", fair_reward, 1.0), Reward("odd", function, 0.0 if gate else 2.0, gate)]
    for _ in range(2):
        scores = run(rewards, strict=False)
        assert scores.total.tolist() == ([0.0] * 3 if gate else [1.0] * 3)
        assert scores.metrics == {"rewards/odd/faults": 3.0}
    assert caplog.text.count("it does not apply to these rows (logged once)") == 1
    assert f"reward odd {message}" in caplog.text
    raised = "raised " in message
    with pytest.raises((OverflowError, TypeError) if raised else UserError) as caught:
        run(rewards)
    assert raised or str(caught.value).startswith(f"reward odd {message}") and "\n" not in str(caught.value)


def test_only_the_rows_concerned_are_lost() -> None:
    odd = Reward("odd", lambda completions, **columns: [0.5, math.nan, None], 1.0, True)
    scores = run([Reward("fair", fair_reward, 1.0), odd], strict=False)
    assert scores.total.tolist() == [0.75, 0.0, 1.0] and scores.metrics == {"rewards/odd/faults": 1.0}


def test_a_users_mistake_ends_the_run() -> None:
    def wrong_reward(completions: list[str], **columns: Any) -> list[float]:
        raise UserError("config.rewards.wrong.key names no file")

    with pytest.raises(UserError, match="names no file"):
        run([Reward("wrong", wrong_reward, 1.0)], strict=False)
