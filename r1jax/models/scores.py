"""A transformer that ends in one number in place of logits: reward models and critics.

The number of a position is s = w . h of its normalized state h, as in the `AutoModelForSequenceClassification` folders
of one label; the score of a text is that of its last token. The output head is left out, and the embedding stays.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from r1jax.core.sharding import abstract_tree, is_abstract
from r1jax.models.init import init_weights
from r1jax.models.layers import FLOAT32, Dtypes, weight
from r1jax.models.transformer import Transformer, logical_axes, merge, split

NAMES = {"score.kernel": ("score.weight", 1)}
ENDING = "ForSequenceClassification"  # of the architectures in config.json


class Score(nnx.Module):
    """Hidden [..., D] -> float32 [...]."""

    def __init__(self, width: int, *, dtypes: Dtypes, rngs: nnx.Rngs, std: float):
        self.compute = dtypes.compute
        self.kernel = weight(rngs, (width, 1), ("embed", None), dtypes, std=std)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        kernel_D = self.kernel[...].astype(self.compute)[:, 0]
        return jnp.einsum("...D,D->...", hidden.astype(self.compute), kernel_D, preferred_element_type=jnp.float32)


def attach_score(model: Transformer, *, seed: int = 0) -> Transformer:
    """The model, changed: with a fresh score in place of its output head, and without prediction depths."""
    config: Any = model.config
    make = lambda: Score(config.hidden_size, dtypes=model.dtypes, rngs=nnx.Rngs(seed), std=config.initializer_std)
    if is_abstract(split(model)[1]):
        score = nnx.eval_shape(make)
        graph, params = split(score)
        model.score = merge(graph, abstract_tree(params, logical_axes(score)))
    else:
        model.score = init_weights(make)
    return _drop_head(model)


def _drop_head(model: Transformer) -> Transformer:
    model.head, model.mtp = None, None
    return model


@functools.cache
def score_family(family: types.ModuleType) -> types.ModuleType:
    """A family (models/families/registry.py) whose models end in a score: the same sizes, other files and arrays."""
    scored = types.ModuleType(f"{family.__name__}.scored", __doc__)

    def build(config: Any, *, rngs: nnx.Rngs, dtypes: Dtypes = FLOAT32, **options: Any) -> Transformer:
        model = family.build(config, rngs=rngs, dtypes=dtypes, **options)
        model.score = Score(config.hidden_size, dtypes=dtypes, rngs=rngs, std=config.initializer_std)
        return _drop_head(model)

    def to_hf(config: Any) -> dict[str, Any]:
        return mark_scored(family.to_hf(config))

    parts = {"HF_NAMES": {**family.HF_NAMES, **NAMES}, "build": build, "to_hf": to_hf, "from_hf": family.from_hf}
    for name, value in {**parts, "VARIANTS": family.VARIANTS}.items():
        setattr(scored, name, value)
    return scored


def mark_scored(hf: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model with a score in place of its head."""
    names = [name.replace("ForCausalLM", ENDING) for name in hf.get("architectures") or []]
    labels = {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    depths: dict[str, Any] = {key: 0 for key in ("num_nextn_predict_layers", "mtp_num_hidden_layers") if key in hf}
    return {**hf, "architectures": names, **labels, **depths}


def is_scored(hf: dict[str, Any]) -> bool:
    """Whether a config.json is that of a model with a score."""
    names = hf.get("architectures")
    return isinstance(names, list) and any(isinstance(name, str) and name.endswith(ENDING) for name in names)
