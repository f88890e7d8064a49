"""The layout of sampling commands: `--mesh` splits rows over all devices, and gathers no weights."""

import math
import pathlib
import re

import pytest

from r1jax.core.errors import UserError
from r1jax.core.sharding import batch_parts
from r1jax.core.structs import Sampling
from r1jax.models.flops import Work
from r1jax.runs.sampler import load_sampler, place_sampler


def test_decoding_under_a_mesh_moves_activations_alone(tiny_model: pathlib.Path):
    with place_sampler("data=2,tensor=4"):
        assert batch_parts() == 8
        sampler = load_sampler(tiny_model, slots=8)
        (decode,) = (p for p in sampler.programs(16, Sampling(max_new_tokens=8), Work()) if p.name == "decode")
        text = decode.function.lower(*decode.arguments, **decode.keywords).compile().as_text()
    shapes = re.findall(r"= \w+\[([\d,]+)\]\S* all-(?:gather|reduce|to-all)\(", text)
    smallest = 64 * 64  # values of the model's smallest kernel
    assert shapes and all(math.prod(map(int, shape.split(","))) < smallest for shape in shapes)


def test_an_axis_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="--mesh"), place_sampler("rows=2"):
        pass
