"""Adapters: nothing changes at first, only they are trained, and they compute what W + s A B would."""

import dataclasses
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r1jax.core.errors import UserError
from r1jax.models.adapters.lora import LoRAConfig, adapter_axes, attach_adapters, init_adapters, join_adapters
from r1jax.models.families import deepseek_v3, llama
from r1jax.models.flops import count_work
from r1jax.models.mtp import predict_ahead
from r1jax.models.transformer import Params, merge, split, stack, unstack
from tests.models import toy

CONFIG = LoRAConfig(rank=3, alpha=6.0, targets=("attention.*", "mlp.down"))
EXPERTS = dataclasses.replace(deepseek_v3.VARIANTS["tiny_deepseek_v3"], vocab_size=64)


def build(**options: Any) -> Any:
    return llama.build(toy.CONFIG, rngs=nnx.Rngs(0), **options)


def draw(adapters: Params, std: float = 0.2) -> Params:
    """The adapters with every number drawn, B too."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, std, leaf.shape), jnp.float32), adapters)


def merge_adapters(params: Params, adapters: Params, scale: float) -> Params:
    """The reference: parameters with W + scale A B in the place of every adapted kernel W."""
    if set(adapters) != {"a", "b"}:
        join = lambda key, value: merge_adapters(value, adapters[key], scale) if key in adapters else value
        return {key: join(key, value) for key, value in params.items()}
    kernel, a, b = params["kernel"], adapters["a"], adapters["b"]
    lead, rank = a.shape[: a.ndim + b.ndim - 2 - kernel.ndim], a.shape[-1]
    product = a.reshape(*lead, -1, rank) @ b.reshape(*lead, rank, -1)
    return {**params, "kernel": kernel + scale * product.reshape(kernel.shape)}


def compare_with_merged(model: Any, config: LoRAConfig, std: float) -> None:
    """Loss and gradients of A and B, beside the kernel and merged into it, are equal. std: of the adapters."""
    graph, params = split(model)
    beside, adapters, row = attach_adapters(model, config), draw(init_adapters(model, config), std), toy.tokens(2, 12)

    def loss(graph: nnx.GraphDef, params: Params) -> jax.Array:
        module = merge(graph, params)
        states = module.hidden(row).hidden
        for depth in predict_ahead(module, states, row)[0]:
            states = states + depth
        return jax.nn.log_softmax(module.unembed(states))[..., 3].mean()

    got = jax.jit(jax.value_and_grad(lambda ab: loss(beside, join_adapters(params, ab))))(adapters)
    expected = jax.jit(jax.value_and_grad(lambda ab: loss(graph, merge_adapters(params, ab, config.scale))))(adapters)
    toy.assert_close(got, expected, 1e-5)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(got[1]))


def test_fresh_adapters_change_nothing() -> None:
    graph, params = split(build())
    whole = join_adapters(params, init_adapters(build(), CONFIG))
    row = toy.tokens(2, 9)
    chex.assert_trees_all_equal(merge(attach_adapters(build(), CONFIG), whole)(row), merge(graph, params)(row))


def test_targets_are_adapted_and_nothing_else() -> None:
    """Five maps a layer have A and B beside the kernel; all that was there is the base's own arrays."""
    _, params = split(build())
    adapters = draw(init_adapters(build(), CONFIG))
    flat = jax.tree_util.tree_leaves_with_path(join_adapters(params, adapters))
    before = dict(jax.tree_util.tree_leaves_with_path(params))
    assert all(leaf is before[path] for path, leaf in flat if path in before)
    added = {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in flat if path not in before}
    parts = ("attention.key", "attention.out", "attention.query", "attention.value", "mlp.down")
    assert added == {f"layers.{layer}.{part}.{ab}" for layer in (0, 1) for part in parts for ab in "ab"}
    for name, inputs in (("query", 1), ("out", 2)):
        kernel, adapter = (tree["layers"][1]["attention"][name] for tree in (params, adapters))
        assert adapter["a"].shape == (*kernel["kernel"].shape[:inputs], 3)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_they_compute_as_if_merged(scan_layers: bool) -> None:
    compare_with_merged(build(scan_layers=scan_layers), CONFIG, 0.2)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_they_compute_as_if_merged_beside_experts(scan_layers: bool) -> None:
    """Latent attention, a shared expert, and the maps of a prediction depth; the routed experts are frozen."""
    model = deepseek_v3.build(EXPERTS, rngs=nnx.Rngs(0), scan_layers=scan_layers)
    compare_with_merged(model, LoRAConfig(2, targets=("*attention.*", "*mlp.shared.*", "projection")), 0.05)


def test_latents_that_are_attended_to_have_the_same_adapters() -> None:
    """Few queries: the absorbed form never expands keys, and gives what the plain form gives."""
    results = []
    for form in ("plain", "absorbed"):
        model = deepseek_v3.build(EXPERTS, rngs=nnx.Rngs(0))
        for layer in model.layers:
            layer.attention.form = form
        config = LoRAConfig(2, targets=("attention.*",))
        whole = join_adapters(split(model)[1], draw(init_adapters(model, config)))
        results.append(merge(attach_adapters(model, config), whole)(toy.tokens(1, 6)))
    np.testing.assert_allclose(*results, atol=1e-5)


def test_scanned_layers_have_the_same_product() -> None:
    _, params = split(build())
    scanned = build(scan_layers=True)
    adapters = draw(init_adapters(scanned, CONFIG))
    row = toy.tokens(2, 9)
    stacked = merge(attach_adapters(scanned, CONFIG), join_adapters(stack(params), adapters))(row)
    listed = merge(attach_adapters(build(), CONFIG), join_adapters(params, unstack(adapters)))(row)
    np.testing.assert_allclose(stacked, listed, atol=1e-5)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_no_program_holds_a_merged_kernel_or_the_gradient_of_a_frozen_one(scan_layers: bool) -> None:
    """FLOPs by the compiler's own count (a scanned layer once) and by formula; no product is of a kernel's shape."""
    config = llama.Config(num_layers=2, hidden_size=256, intermediate_size=1024, num_heads=4, head_dim=64)
    model = llama.build(config, rngs=nnx.Rngs(0), scan_layers=scan_layers)
    (graph, params), lora = split(model), LoRAConfig(8)
    beside, adapters, row = attach_adapters(model, lora), init_adapters(model, lora), toy.tokens(3, 64)
    loss = lambda graph, params: jax.nn.log_softmax(merge(graph, params)(row))[..., 3].mean()
    full = jax.jit(jax.grad(lambda params: loss(graph, params))).lower(params).compile()
    few = (
        jax.jit(jax.grad(lambda ab, params: loss(beside, join_adapters(params, ab)))).lower(adapters, params).compile()
    )
    kernel = r"f32\[256,1024\]\S* dot\("
    assert re.search(kernel, full.as_text()) and not re.search(kernel, few.as_text())
    executed, whole = few.cost_analysis()["flops"], full.cost_analysis()["flops"]
    assert executed < (0.74 if scan_layers else 0.72) * whole
    if not scan_layers:
        useful = count_work(params, config, adapters).train(row.size, row.size, row.size * row.shape[1] / 2)
        assert useful < executed < 1.05 * useful


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
    model = deepseek_v3.build(EXPERTS, rngs=nnx.Rngs(0))
    adapters = init_adapters(model, LoRAConfig(2, targets=("*attention.*", "projection")))
    assert set(adapters) == {"layers", "mtp"} and set(adapters["mtp"][0]) == {"block", "projection"}


def test_a_target_that_names_nothing_is_an_error_that_lists_the_names() -> None:
    with pytest.raises(UserError, match=r'config\.lora\.targets: no linear map matches "q_proj"; .*attention\.query'):
        init_adapters(build(), LoRAConfig(2, targets=("mlp.*", "q_proj")))
