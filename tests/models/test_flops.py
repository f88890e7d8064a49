"""Useful FLOPs by formula against sums done by hand from the sizes: dense, with experts, with adapters."""

from typing import Any

import jax
import pytest
from flax import nnx

from r1jax.models.adapters.lora import LoRAConfig, init_adapters
from r1jax.models.families import deepseek_v3, llama, qwen3_moe
from r1jax.models.flops import Work, count_work
from r1jax.models.presets import count_parameters
from r1jax.models.transformer import split

TOKENS, TARGETS, PAIRS = 100, 60, 1700


def build(family: Any, config: Any, **options: Any) -> Any:
    """The model without weights."""
    return nnx.eval_shape(lambda: family.build(config, rngs=nnx.Rngs(0), **options))


def count(family: Any, config: Any, **options: Any) -> Work:
    return count_work(split(build(family, config, **options))[1], config)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_dense_model(tied: bool, scan_layers: bool) -> None:
    config = llama.Config(tie_embeddings=tied, num_layers=3)
    shapes = split(build(llama, config, scan_layers=scan_layers))[1]
    work, table = count_work(shapes, config), 256 * 64
    kernels = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128
    assert work == Work(2.0 * 3 * kernels, 2.0 * table, 3 * 4 * 64.0)
    assert work.forward(TOKENS, TARGETS, PAIRS) == 6 * kernels * TOKENS + 2 * table * TARGETS + 768 * PAIRS
    assert work.train(TOKENS, TARGETS, PAIRS) == 3 * work.forward(TOKENS, TARGETS, PAIRS)
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert total == 3 * (kernels + 2 * 64) + table * (1 if tied else 2) + 64 == count_parameters(llama, config).total
    assert isinstance(jax.tree.leaves(shapes)[0], jax.ShapeDtypeStruct)  # nothing was made for it


def test_the_demo_model_has_135_million() -> None:
    config = llama.VARIANTS["smollm2_135m"]
    assert count_parameters(llama, config).total == 134_515_008
    assert sum(leaf.size for leaf in jax.tree.leaves(split(build(llama, config))[1])) == 134_515_008


def test_a_model_with_experts_counts_the_active_ones() -> None:
    config = qwen3_moe.Config()
    D, heads, kv = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = 2 * D * heads + 2 * D * kv
    mixed = D * config.num_experts + config.active_experts * 3 * D * config.expert_size
    assert config.active_experts < config.num_experts
    work = count(qwen3_moe, config)
    assert work.body == 2 * config.num_layers * (attention + mixed)
    assert work.pair == 4 * config.num_layers * heads


def test_an_experts_work_counts_by_its_share() -> None:
    """A token meets 2 of 8 experts: the others' weights are no work."""
    sizes = deepseek_v3.Config()
    work, one = count(deepseek_v3, sizes), count(deepseek_v3, deepseek_v3.Config(active_experts=3))
    routing = sum(map(sizes.routes, range(sizes.num_layers)))
    assert one.body - work.body == 2 * routing * 3 * sizes.hidden_size * sizes.expert_size
    assert work.ahead > 0 and work.train(1, 0, 0, ahead=True) == 3 * (work.body + work.ahead)


def test_adapters_need_no_gradient_of_frozen_weights() -> None:
    """Of a frozen weight the product and the gradient of its input; of an adapter's the gradient of itself too."""
    config, rank = llama.Config(num_layers=3), 4
    model = build(llama, config)
    adapters = jax.eval_shape(lambda: init_adapters(model, LoRAConfig(rank=rank, targets=("attention.*",))))
    params = split(model)[1]
    work, plain = count_work(params, config, adapters), count_work(params, config)
    low_rank = 3 * rank * (2 * (64 + 64) + 2 * (64 + 32))  # query, output; key, value
    assert work.forward(TOKENS, TARGETS, PAIRS) == plain.forward(TOKENS, TARGETS, PAIRS) + 2 * low_rank * TOKENS
    frozen = plain.forward(TOKENS, TARGETS, 0)
    assert work.train(TOKENS, TARGETS, PAIRS) == 2 * frozen + 3 * plain.pair * PAIRS + 6 * low_rank * TOKENS
