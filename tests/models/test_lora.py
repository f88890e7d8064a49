"""Adapters: nothing changes at first, only they are trained, and the merged kernel is W + s A B."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r1jax.core.errors import UserError
from r1jax.models.families import deepseek_v3, llama
from r1jax.models.lora import LoRAConfig, adapter_axes, init_adapters, merge_adapters
from r1jax.models.transformer import Params, merge, split, stack, unstack
from tests.models import toy

CONFIG = LoRAConfig(rank=3, alpha=6.0, targets=("attention.*", "mlp.down"))


def build(**options: Any) -> Any:
    return llama.build(toy.CONFIG, rngs=nnx.Rngs(0), **options)


def draw(adapters: Params) -> Params:
    """The adapters with every number drawn, B too."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.2, leaf.shape), jnp.float32), adapters)


def test_fresh_adapters_change_nothing() -> None:
    _, params = split(build())
    adapters = init_adapters(build(), CONFIG)
    merged = merge_adapters(params, adapters, CONFIG.scale)
    chex.assert_trees_all_equal(merged, params)


def test_targets_are_adapted_and_nothing_else() -> None:
    """Five kernels a layer, each as x A B beside x W; the others are the base's own arrays."""
    _, params = split(build())
    adapters = draw(init_adapters(build(), CONFIG))
    merged = merge_adapters(params, adapters, CONFIG.scale)
    flat = jax.tree_util.tree_leaves_with_path(merged)
    before = dict(jax.tree_util.tree_leaves_with_path(params))
    changed = {
        jax.tree_util.keystr(path, simple=True, separator=".") for path, leaf in flat if leaf is not before[path]
    }
    parts = ("attention.key", "attention.out", "attention.query", "attention.value", "mlp.down")
    assert changed == {f"layers.{layer}.{part}.kernel" for layer in (0, 1) for part in parts}
    for name, inputs in (("query", 1), ("out", 2)):
        kernel, adapter = (tree["layers"][1]["attention"][name] for tree in (params, adapters))
        a, b = (np.asarray(adapter[key], np.float64) for key in "ab")
        expected = np.asarray(kernel["kernel"], np.float64) + 6 / 3 * np.tensordot(a, b, 1)
        assert a.shape == (*kernel["kernel"].shape[:inputs], 3)
        np.testing.assert_allclose(merged["layers"][1]["attention"][name]["kernel"], expected, atol=1e-6)


def test_scanned_layers_have_the_same_product() -> None:
    _, params = split(build())
    scanned = build(scan_layers=True)
    adapters = draw(init_adapters(scanned, CONFIG))
    merged = unstack(merge_adapters(stack(params), adapters, CONFIG.scale))
    expected = merge_adapters(params, unstack(adapters), CONFIG.scale)
    toy.assert_close(merged, expected, 1e-6)


def test_axes_are_those_of_the_kernel() -> None:
    model = build(scan_layers=True)
    adapters, axes = init_adapters(model, CONFIG), adapter_axes(model, CONFIG)
    out = axes["stacks"][0]["attention"]["out"]
    assert out == {"a": ("layers", "heads", "head_dim", None), "b": ("layers", None, "embed")}
    for leaf, named in zip(
        jax.tree.leaves(adapters), jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple)), strict=True
    ):
        assert leaf.ndim == len(named) and leaf.dtype == jnp.float32


def test_latent_attention_and_depths_can_be_adapted() -> None:
    config = dataclasses.replace(deepseek_v3.VARIANTS["tiny_deepseek_v3"], vocab_size=64)
    model = deepseek_v3.build(config, rngs=nnx.Rngs(0))
    graph, params = split(model)
    adapters = draw(init_adapters(model, LoRAConfig(2, targets=("*attention.*", "projection"))))
    assert set(adapters) == {"layers", "mtp"} and set(adapters["mtp"][0]) == {"block", "projection"}
    forward = jax.jit(lambda params: merge(graph, params)(toy.tokens(1, 6)))
    assert not np.allclose(forward(merge_adapters(params, adapters, 1.0)), forward(params))


def test_a_target_that_names_nothing_is_an_error_that_lists_the_names() -> None:
    with pytest.raises(UserError, match=r'config\.lora\.targets: no linear map matches "q_proj"; .*attention\.query'):
        init_adapters(build(), LoRAConfig(2, targets=("mlp.*", "q_proj")))
