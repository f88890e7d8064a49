"""A bank of adapters: each row of a batch is computed as by the model with that adapter alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.adapters.adapter_bank import ALPHA, AdapterBank
from r1jax.models.adapters.lora import LoRAConfig, attach_adapters, join_adapters
from r1jax.models.transformer import Transformer, merge, split
from tests.models import toy

TOKENS = np.arange(24).reshape(3, 8) % 11


def toy_model(**options: Any) -> Transformer:
    return merge(*toy.build(**options))


def draw_adapter(bank: AdapterBank, seed: int, rank: int, kinds: tuple[str, ...]) -> dict:
    """An adapter of which both parts are drawn, where it has any."""

    def draw(tree: dict) -> dict:
        if set(tree) != {"a", "b"}:
            return {key: draw(value) for key, value in tree.items()}
        shape, std = tree["b"].shape, 0.05 * tree["a"].any()
        return {"a": tree["a"], "b": std * jax.random.normal(jax.random.key(seed), shape)}

    return draw(bank.init_adapter(rank=rank, seed=seed, kinds=kinds))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_rows_are_those_of_each_adapter_alone(scan_layers: bool) -> None:
    model = toy_model(scan_layers=scan_layers)
    graph, params = split(model)
    bank = AdapterBank(model, places=3, rank=4)
    kinds = ("attention", "mlp")
    adapters = {0: draw_adapter(bank, 1, 4, kinds), 2: draw_adapter(bank, 2, 3, kinds)}
    whole = bank.empty()
    for place, adapter in adapters.items():
        whole = bank.write(whole, adapter, jnp.int32(place))
    gates = bank.gates([(2, 3), None, (0, 4)])
    logits = merge(bank.graph, bank.join(params, whole, gates))(TOKENS)
    np.testing.assert_array_equal(logits[1], merge(graph, params)(TOKENS)[1])
    for row, (place, rank) in {0: (2, 3), 2: (0, 4)}.items():
        config = LoRAConfig(rank=4, alpha=4 * ALPHA / rank, targets=("attention.*", "mlp.*"))
        own = {key: value for key, value in adapters[place].items() if key in ("layers", "stacks")}
        if rank < 4:
            own = jax.tree_util.tree_map_with_path(lambda path, x, r=rank: _cut(path, x, r), own)
        expected = merge(attach_adapters(model, config), join_adapters(params, own))(TOKENS)
        np.testing.assert_allclose(logits[row], expected[row], atol=2e-5)


def _cut(path: tuple, x: jax.Array, rank: int) -> jax.Array:
    """A part without the columns that an adapter of lower rank does not use."""
    return x * (jnp.arange(x.shape[-1]) < rank) if path[-1].key == "a" else x


def test_the_head_has_adapters_too() -> None:
    model = toy_model()
    _, params = split(model)
    bank = AdapterBank(model, places=2, rank=2)
    adapter = draw_adapter(bank, 3, 2, ("unembed",))
    whole = bank.write(bank.empty(), adapter, jnp.int32(1))
    adapted = merge(bank.graph, bank.join(params, whole, bank.gates([(1, 2)] * 3)))
    hidden = adapted.hidden(TOKENS).hidden
    np.testing.assert_array_equal(hidden, model.hidden(TOKENS).hidden)
    parts = adapter["embed" if model.head is None else "head"]
    expected = model.unembed(hidden) + ALPHA / 2 * (hidden @ parts["a"]) @ parts["b"]
    np.testing.assert_allclose(adapted.unembed(hidden), expected, atol=2e-5)
    np.testing.assert_array_equal(jax.tree.leaves(bank.read(whole, jnp.int32(1)))[0], jax.tree.leaves(adapter)[0])


def test_maps_that_are_left_out_have_no_gradient() -> None:
    model = toy_model()
    _, params = split(model)
    bank = AdapterBank(model, places=1, rank=2)
    adapter = bank.init_adapter(rank=2, seed=0, kinds=("attention",))
    whole = bank.write(bank.empty(), adapter, jnp.int32(0))
    measure = lambda whole: merge(bank.graph, bank.join(params, whole, bank.gates([(0, 2)] * 3)))(TOKENS).std()
    gradient = jax.grad(measure)(whole)
    found = {jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(gradient) if leaf.any()}
    assert found and all("attention" in path for path in found)


def test_arrays_of_other_ranks_are_cut_and_filled() -> None:
    bank = AdapterBank(toy_model(), places=2, rank=4)
    adapter = draw_adapter(bank, 1, 3, bank.kinds)
    flat = {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(adapter)}
    for path, leaf in flat.items():
        name = ("moments", *map(str, path))
        small = bank.resize(name, np.asarray(leaf), 3)
        assert small.size == leaf.size * 3 // 4
        again = bank.resize(name, small, 4)
        assert again.shape == leaf.shape
    assert bank.resize(("count",), np.int32(3), 2) == 3
