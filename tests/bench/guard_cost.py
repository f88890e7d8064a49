"""Share of a run's time that goes into its safety: saves with checksums, guards of updates and rewards, locks, digests.

Trains the config once with a timer around each of these, nested calls counted once. The norm by which the guard decides
is timed from a gradient that is ready, so that the time to compute the gradient does not count. One JSON line.

    python -m tests.bench.guard_cost [--config configs/grpo_zero.py] [--workdir DIR] [key=value …]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import pathlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax

import r1jax
from r1jax.core import checkpoint, interrupts, locks, watchdog
from r1jax.learner import step, update_guard
from r1jax.runs import loop, workdir

seconds: Counter[str] = Counter()
_open: list[str] = []


def time_calls(kind: str, owner: Any, name: str) -> None:
    """Adds the time of every call of `owner.name` to a kind."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def outer(*args: Any, **named: Any) -> Any:
        with timed(kind):
            return inner(*args, **named)

    setattr(owner, name, outer)


@contextlib.contextmanager
def timed(kind: str) -> Any:
    begun, _ = time.perf_counter(), _open.append(kind)
    try:
        yield
    finally:
        _open.pop()
        if not _open:
            seconds[kind] += time.perf_counter() - begun


def time_rewards(owner: Any) -> None:
    """What the guard of rewards adds to the calls of the rewards themselves."""
    inner = owner.call_guarded

    def outer(name: str, call: Callable[[], Any], count: int, *, strict: bool) -> Any:
        spent = Counter[str]()

        def timed_call() -> Any:
            begun = time.perf_counter()
            values = list(call())
            spent["reward"] += time.perf_counter() - begun
            return values

        begun = time.perf_counter()
        values = inner(name, timed_call, count, strict=strict)
        seconds["guard of rewards"] += time.perf_counter() - begun - spent["reward"]
        return values

    owner.call_guarded = outer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/grpo_zero.py")
    parser.add_argument("--workdir")
    parser.add_argument("overrides", nargs="*", help="keys of the config: steps=3 model.name=…")
    args = parser.parse_args()
    from r1jax.rewards import base

    for name in ("save", "finish", "close", "find_whole", "restore"):
        time_calls("saves and checksums", checkpoint.Checkpoints, name)
    for name in ("is_due", "note", "save"):
        time_calls("saves and checksums", loop._Saves, name)
    time_calls("guard of updates", update_guard.UpdateGuard, "admit")
    inner = step.measure_norm

    def measure_norm(tree: Any) -> Any:
        jax.block_until_ready(tree)
        with timed("guard of updates"):
            return jax.block_until_ready(inner(tree))

    step.measure_norm = loop.measure_norm = measure_norm  # type: ignore[assignment]
    time_rewards(base)
    for name in ("_take", "_read", "_write"):
        time_calls("locks", locks, name)
    for name in ("check_config", "set_aside", "write_config"):
        time_calls("config and digests", workdir, name)
        setattr(loop, name, getattr(workdir, name))
    from r1jax.core.processes import agreement
    from r1jax.data import loader

    for owner, name in ((agreement, "digest_items"), (loader, "compute_fingerprint")):
        time_calls("config and digests", owner, name)
    time_calls("signals and watchdog", interrupts.Interrupts, "is_due")
    time_calls("signals and watchdog", watchdog.Watchdog, "__enter__")
    begun = time.perf_counter()
    overrides = {key.replace(".", "__"): value for key, _, value in (each.partition("=") for each in args.overrides)}
    r1jax.run(args.config, workdir=args.workdir or pathlib.Path(tempfile.mkdtemp()) / "run", **overrides)
    whole = time.perf_counter() - begun
    share = sum(seconds.values()) / whole
    kinds = {kind: round(value, 3) for kind, value in seconds.most_common()}
    print(json.dumps({"seconds": round(whole, 1), "share": round(share, 5), **kinds}))


if __name__ == "__main__":
    main()
