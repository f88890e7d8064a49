"""Published shapes have the published number of parameters, counted without an array."""

import dataclasses

import pytest

from r1jax.core.errors import UserError
from r1jax.models.presets import count_parameters, find_preset, load_families, replace_sizes

# The sum of the sizes in each released model's safetensors index (or its model card's count).
DENSE = {
    "smollm2_135m": 134_515_008,
    "llama2_7b": 6_738_415_616,
    "llama3.1_8b": 8_030_261_248,
    "llama3.1_70b": 70_553_706_496,
    "qwen2.5_0.5b": 494_032_768,
    "qwen2.5_1.5b": 1_543_714_304,
    "qwen2.5_3b": 3_085_938_688,
    "qwen2.5_7b": 7_615_616_512,
    "qwen2.5_14b": 14_770_033_664,
    "qwen2.5_32b": 32_763_876_352,
    "qwen2.5_math_1.5b": 1_543_714_304,
    "qwen2.5_math_7b": 7_615_616_512,
    "qwen3_0.6b": 596_049_920,
    "qwen3_1.7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
}
# Parameters of the safetensors without prediction depths, and what the model card calls active. DeepSeek's cards leave
# the table of embeddings out of it, Qwen's count it.
EXPERTS = {
    "deepseek_v3_671b": (671_026_419_200, 37e9),
    "deepseek_v2_lite_16b": (15_706_484_224, 2.4e9),
    "qwen3_30b_a3b": (30_532_122_624, 3.3e9),
    "qwen3_235b_a22b": (235_093_634_560, 22e9),
}


@pytest.mark.parametrize("name", DENSE)
def test_dense_shapes_have_the_published_size(name: str) -> None:
    assert count_parameters(*find_preset(name)) == (DENSE[name], DENSE[name], 0)


@pytest.mark.parametrize("name", EXPERTS)
def test_shapes_with_experts_have_the_published_sizes(name: str) -> None:
    (total, active), (family, config) = EXPERTS[name], find_preset(name)
    found = count_parameters(family, config)
    table = config.vocab_size * config.hidden_size if name.startswith("deepseek") else 0
    assert found.total == total and found.active - table == pytest.approx(active, rel=0.025)
    if config == find_preset("deepseek_v3_671b")[1]:  # the hub's 684.5 B are these, the depth, and its two copies
        assert found.total + found.ahead + 2 * table == 684_489_845_504
    else:
        assert found.ahead == 0


def test_every_family_has_a_toy_and_writes_what_it_reads() -> None:
    for name, family in load_families().items():
        assert any(variant.startswith(f"tiny_{name}") for variant in family.VARIANTS)
        for variant, config in family.VARIANTS.items():
            assert dataclasses.asdict(family.from_hf(family.to_hf(config))) == dataclasses.asdict(config), variant
            assert find_preset(variant) == (family, config)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown model shape 'qwen9'; known: .*qwen2\.5_7b, .*smollm2_135m"):
        find_preset("qwen9")


def test_sizes_within_sizes_are_replaced_one_by_one():
    _, sizes = find_preset("tiny_deepseek_v3")
    changed = replace_sizes(sizes, {"num_layers": 5, "latents": {"latent": 48}})
    assert changed.num_layers == 5 and changed.latents == dataclasses.replace(sizes.latents, latent=48)
    with pytest.raises(UserError, match="config.model.sizes must be among .* got depth"):
        replace_sizes(sizes, {"depth": 2})
    with pytest.raises(UserError, match="config.model.sizes.latents must map names of its sizes to new values, got 48"):
        replace_sizes(sizes, {"latents": 48})
