"""Counts of parameters, against the sums done by hand."""

import jax
import pytest
from flax import nnx

from r1jax.core.tree import count_parameters
from r1jax.models.families import llama
from r1jax.models.transformer import split


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_counts_of_a_llama(tied: bool, scan_layers: bool) -> None:
    config = llama.Config(tie_embeddings=tied, num_layers=3)
    shapes = split(nnx.eval_shape(lambda: llama.build(config, rngs=nnx.Rngs(0), scan_layers=scan_layers)))[1]
    sizes = count_parameters(shapes)
    table = 256 * 64
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
    assert sizes.body == 3 * layer and sizes.head == table
    assert sizes.total == 3 * layer + table * (1 if tied else 2) + 64
    assert isinstance(jax.tree.leaves(shapes)[0], jax.ShapeDtypeStruct)  # nothing was made for it


def test_the_demo_model_has_135_million() -> None:
    config = llama.VARIANTS["smollm2_135m"]
    sizes = count_parameters(split(nnx.eval_shape(lambda: llama.build(config, rngs=nnx.Rngs(0))))[1])
    assert sizes.total == 134_515_008
