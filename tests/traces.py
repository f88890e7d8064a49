"""How often programs may be traced: what is traced step by step compiles step by step."""

from types import ModuleType

import chex
import pytest


def limit_traces(monkeypatch: pytest.MonkeyPatch, module: ModuleType, **most: int) -> None:
    """From here on each named function of `module` may be traced that many times; once more is an AssertionError.

    Before the functions are jitted; they are counted anew by every call of this.
    """
    chex.clear_trace_counter()
    for name, count in most.items():
        monkeypatch.setattr(module, name, chex.assert_max_traces(getattr(module, name), count))
