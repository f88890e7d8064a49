"""Layer pruning: a shallower model from some layers of a deeper one, to be healed by training.

A student with its teacher's embeddings, head and every third layer needs far fewer training tokens than one from
scratch (as in DistilBERT, arXiv:1910.01108). Left out: models with several kinds of layers.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import numpy as np
from flax import nnx

from r1jax.core.errors import UserError
from r1jax.models.transformer import Transformer, split

Choice = Literal["spread", "first"]


def keep_layers(model: Transformer, count: int, choice: Choice = "spread") -> Transformer:
    """Keeps `count` layers of the model, changed in place: evenly spaced with both ends included, or the first ones.

    Raises UserError if the model has fewer layers, or layers of several kinds.
    """
    total = sum(model.counts)
    if not 1 <= count <= total:
        raise UserError(f"config.model.layers must be from 1 to the model's {total} layers (0: all), got {count}")
    if len(model.counts) > 1 or model.mtp is not None or len({split(block)[0] for block in model.blocks()}) > 1:
        raise UserError("config.model.layers needs a model whose layers are all of one kind")
    chosen = np.arange(count) if choice == "first" else np.linspace(0, total - 1, count).round().astype(int)
    if model.scan_layers:
        graph, weights = nnx.split(model.stacks[0])
        model.stacks = nnx.List([nnx.merge(graph, jax.tree.map(lambda leaf: leaf[chosen], weights))])
    else:
        model.layers = nnx.List([model.layers[int(number)] for number in chosen])
    model.config, model.counts = dataclasses.replace(model.config, num_layers=count), (count,)
    return model
