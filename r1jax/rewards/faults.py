"""Faults of rewards: each costs the reward's values, not the run.

A reward that raises, or returns a wrong number of values or a value that is not a finite number, does not apply to the
affected rows. These rows count in the metric `rewards/{name}/faults`, a gate stays shut for them, and the log names the
first fault. With `strict` a fault ends the run.
"""

import logging
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

from r1jax.core.errors import UserError

log = logging.getLogger(__name__)

_said: set[str] = set()


class Fault(float):
    """A value that a reward failed to give: NaN, so that the reward does not apply."""

    def __new__(cls) -> "Fault":
        """Makes a NaN."""
        return super().__new__(cls, math.nan)


def call_guarded(name: str, call: Callable[[], Sequence[Any]], count: int, *, strict: bool) -> list[float | None]:
    """The `count` values of `call()`, with `Fault` in place of invalid ones. Passes UserError on, as it is a user's
    mistake.

    If `strict`, passes on every error of the reward, and raises UserError for other faults.
    """
    try:
        values = list(call())
    except UserError:
        raise
    except Exception as error:
        if strict:
            raise
        return _report(name, f"raised {describe(error)}", count)
    if len(values) != count:
        fault = f"must return one value a completion: {count}, got {len(values)}"
        if strict:
            raise UserError(f"reward {name} {fault}")
        return _report(name, fault, count)
    return [_check(name, value, strict) for value in values]


def describe(error: Exception) -> str:
    """One line: type, message, and place of an error."""
    where, trace = "", error.__traceback__
    while trace is not None:
        where = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{where}"


def _check(name: str, value: Any, strict: bool) -> float | None:
    if value is None:
        return None
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return value  # type: ignore[return-value]
    fault = f"must return finite numbers or None, got {str(value)[:80]}"
    if strict:
        raise UserError(f"reward {name} {fault}")
    return _report(name, fault, 1)[0]


def _report(name: str, fault: str, count: int) -> list[float | None]:
    if name not in _said:
        _said.add(name)
        log.warning("reward %s %s; it does not apply to these rows (logged once)", name, fault)
    return [Fault()] * count
