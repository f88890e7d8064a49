"""One update's rows for the tests: a toy Llama, completions of several lengths packed behind a shared prefix."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from r1jax.core.distributed import put_global
from r1jax.core.sharding import sharding
from r1jax.data.packing import PackedRows, RowShape, pack_completions
from r1jax.learner.policy_objective import Batch
from r1jax.losses.aggregation import token_weights
from r1jax.models.transformer import Params
from tests.models import naive, toy

PREFIX = tuple(toy.tokens(5, seed=1).tolist())
SHAPE = RowShape(prompt_tokens=4, completion_tokens=6, completions=2, prefix=len(PREFIX))
GROUP = 3
TEMPERATURE = 0.8


class Update(NamedTuple):
    """Packed rows (8 of them, some empty), values per completion token, and what they must come to."""

    packed: PackedRows
    arrays: dict[str, np.ndarray]
    logprobs: np.ndarray
    entropy: np.ndarray
    lengths: np.ndarray


@functools.cache
def model() -> tuple[nnx.GraphDef, Params]:
    return toy.build()


@functools.cache
def update() -> Update:
    """Log-probs and entropy come from a naive Llama, completion by completion."""
    random = np.random.default_rng(0)
    prompts = [PREFIX + tuple(random.integers(1, 64, random.integers(1, 5)).tolist()) for _ in range(4)]
    owners = np.repeat(np.arange(4), GROUP)
    completions = [tuple(random.integers(1, 64, random.integers(1, 7)).tolist()) for _ in owners]
    packed = pack_completions(prompts, completions, owners.tolist(), SHAPE, multiple=8)
    assert len(packed.tokens) == 8 and (packed.source[-1] == -1).all()
    scores = [score(prompts[owner], completion) for owner, completion in zip(owners, completions, strict=True)]
    logprobs, entropy = (np.concatenate(values) for values in zip(*scores, strict=True))
    lengths = np.array([len(completion) for completion in completions])
    noise = lambda size: random.normal(0, size, len(logprobs))
    arrays = {
        "advantages": np.repeat(random.normal(size=len(lengths)), lengths),
        "weights": np.repeat(token_weights(lengths, "sequence"), lengths),
        "sampler_logprobs": logprobs + noise(1e-3),
        "old_logprobs": logprobs + noise(0.3),
        "reference_logprobs": logprobs + noise(0.3),
    }
    return Update(
        packed, {name: value.astype(np.float32) for name, value in arrays.items()}, logprobs, entropy, lengths
    )


def score(prompt: tuple[int, ...], completion: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(log-probs of the completion's tokens, entropy of each's distribution) at the temperature."""
    logits = naive.forward(model()[1], toy.CONFIG, np.array([*prompt, *completion]))[len(prompt) - 1 : -1] / TEMPERATURE
    logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return logprobs[np.arange(len(completion)), completion], -(np.exp(logprobs) * logprobs).sum(-1)


def unfold(laid_out: jax.Array) -> np.ndarray:
    """[B, R] -> a value per completion token."""
    source = update().packed.source
    flat = np.zeros(source.max() + 1)
    flat[source[source >= 0]] = np.asarray(laid_out)[source >= 0]
    return flat


def batches(size: int, *names: str, **other: np.ndarray) -> list[Batch]:
    """Micro-batches of `size` rows with the given values beside the fixed ones, placed on the current mesh; `other`
    values per completion token stand for those of the update."""
    packed, arrays, *_ = update()
    arrays = {**arrays, **other}
    fields = ("tokens", "positions", "segments", "prefixes", "index", "targets")
    whole: dict[str, Any] = {name: getattr(packed, name) for name in fields}
    whole["sequences"] = packed.sequences
    names = ("advantages", "weights", "sampler_logprobs", *names)
    whole |= {name: packed.lay_out(arrays[name]) for name in names}
    pieces = [{k: v[at : at + size] for k, v in whole.items()} for at in range(0, 8, size)]
    place = lambda x: sharding(("batch", None), x.shape)
    return [put_global(piece, jax.tree.map(place, piece)) for piece in pieces]
