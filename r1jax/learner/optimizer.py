"""AdamW with a learning-rate schedule and clipping by global norm, from optax.

Weight decay skips norm scales (one-dimensional per layer). The schedule counts updates. Moments, and the parameters
that they update, are float32 in any parameter dtype (learner/precision.py).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

from r1jax.core.errors import UserError
from r1jax.learner.balance import is_bias
from r1jax.learner.offload import keep_in_host
from r1jax.learner.precision import keep_float32


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its learning-rate schedule over all updates of the run, and clipping.

    Attributes:
      learning_rate: peak learning rate.
      schedule: course of the rate after the warm-up; cosine and linear fall to `final_share` of the peak.
      warmup_updates: updates in which the rate rises linearly to its peak.
      final_share: share of the peak rate that the schedule ends at.
      beta1: decay of the first moment.
      beta2: decay of the second moment.
      epsilon: constant that AdamW adds to the root of the second moment.
      weight_decay: decoupled weight decay; norm scales have none.
      clip_norm: bound on the global norm of the gradient; 0 is no bound.
      offload: whether the moments are kept in host memory between updates (learner/offload.py).
      only: part of the names of the parameters that are trained, such as "indexer"; empty: all are.
    """

    learning_rate: float = 1e-6
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_updates: int = 0
    final_share: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    offload: bool = False
    only: str = ""

    def __post_init__(self) -> None:
        if self.learning_rate < 0 or self.warmup_updates < 0:
            raise UserError("config.optimizer: learning_rate and warmup_updates must be at least 0")
        rules = {
            "learning_rate": (0 <= self.learning_rate < math.inf, "must be 0 or more, and finite"),
            "final_share": (0 <= self.final_share < math.inf, "must be 0 or more, and finite"),
            "beta1": (0 <= self.beta1 < 1, "must be from 0 to below 1"),
            "beta2": (0 <= self.beta2 < 1, "must be from 0 to below 1"),
            "epsilon": (0 <= self.epsilon < math.inf, "must be 0 or more, and finite"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "must be 0 or more, and finite"),
            "clip_norm": (self.clip_norm >= 0, "must be 0 (no bound) or more"),
        }
        for name, (is_right, rule) in rules.items():
            if not is_right:
                raise UserError(f"config.optimizer.{name} {rule}, got {getattr(self, name)!r}")


def make_schedule(config: OptimizerConfig, total_updates: int) -> optax.Schedule:
    """Function from update number to learning rate."""
    peak, rest = config.learning_rate, max(1, total_updates - config.warmup_updates)
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=config.final_share),
        "linear": optax.linear_schedule(peak, peak * config.final_share, rest),
    }[config.schedule]
    if not config.warmup_updates:
        return after
    warmup = optax.linear_schedule(peak / config.warmup_updates, peak, config.warmup_updates - 1)
    return optax.join_schedules([warmup, after], [config.warmup_updates])


def make_optimizer(config: OptimizerConfig, total_updates: int) -> optax.GradientTransformation:
    """The whole chain in float32: clip, AdamW; correction biases of experts are excluded."""
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm > 0 else optax.identity(),
        optax.adamw(
            make_schedule(config, total_updates),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )
    optimizer = train_chosen(keep_float32(chain), choose_unbiased)
    if config.only:
        optimizer = train_chosen(optimizer, functools.partial(choose_named, config.only))
    return keep_in_host(optimizer) if config.offload else optimizer


def decay_mask(params: Any) -> Any:
    """True for parameters with weight decay: all except norm scales."""
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", None) != "scale", params)


def train_chosen(inner: optax.GradientTransformation, choose: Callable[[Any], Any]) -> optax.GradientTransformation:
    """`inner` applied to the parameters that `choose(params)` marks; the others it never sees, and they do not move."""
    held = lambda params: jax.tree.map(operator.not_, choose(params))
    return optax.chain(optax.masked(inner, choose), optax.masked(optax.set_to_zero(), held))


def choose_unbiased(params: Any) -> Any:
    """True for all but the correction biases of experts."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not is_bias(path), params)


def choose_named(part: str, params: Any) -> Any:
    """True for the parameters whose names contain `part`. Raises UserError if no parameter is named so."""
    has = lambda path, _: part in jax.tree_util.keystr(path, simple=True, separator=".")
    marks = jax.tree_util.tree_map_with_path(has, params)
    if not any(jax.tree.leaves(marks)):
        raise UserError(f"config.optimizer.only must be part of a parameter's name, got {part!r}")
    return marks
