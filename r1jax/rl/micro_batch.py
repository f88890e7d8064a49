"""The arrays of a micro-batch of the policy's updates, as shapes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from r1jax.core.sharding import abstract_array
from r1jax.data.packing import RowShape
from r1jax.rl.grpo_config import GRPOConfig


def describe_batch(
    settings: GRPOConfig, shape: RowShape, rows: int, scored: tuple[str, ...], routing: tuple[int, int]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes with shardings of a micro-batch of so many rows. scored: names of log-probs that are computed before the
    loss. routing: layers with experts, and experts of a token.
    """
    fed, aimed = (shape.length,), (shape.targets,)
    arrays: dict[str, tuple[tuple[int, ...], Any]] = dict.fromkeys(
        ("tokens", "positions", "segments"), (fed, jnp.int32)
    )
    if shape.share_prompts:
        arrays["prefixes"] = (fed, jnp.int32)
    arrays |= dict.fromkeys(("index", "targets"), (aimed, jnp.int32))
    if settings.loss.needs_sequences:
        arrays["sequences"] = (aimed, jnp.int32)
    arrays |= dict.fromkeys(("weights", "advantages", "sampler_logprobs", *scored), (aimed, jnp.float32))
    if settings.loss.top_entropy_quantile < 1:
        arrays["selected"] = (aimed, jnp.float32)
    if settings.rollout.max_staleness:
        arrays["ages"] = (aimed, jnp.int32)
    if settings.train.replay_experts:
        arrays["experts"] = ((*aimed, *routing), jnp.int16)
    batch = {name: _abstract((rows, *shape), dtype) for name, (shape, dtype) in arrays.items()}
    if settings.rollout.temperature_schedule:
        batch["temperature"] = _abstract((), jnp.float32)
    if settings.loss.entropy_target:
        batch["entropy_coefficient"] = _abstract((), jnp.float32)
    return batch


def _abstract(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return abstract_array(shape, dtype, ("batch", *[None] * (len(shape) - 1))[: len(shape)], name="micro-batch")
