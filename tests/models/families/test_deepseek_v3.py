"""The DeepSeek family is what transformers computes: logits, greedy tokens, gradients, the prediction depth
(tests/goldens/make_deepseek.py), in every form of the model."""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r1jax.core.errors import UserError
from r1jax.losses.prediction import next_token_loss
from r1jax.models.dispatch import Dispatch
from r1jax.models.families import deepseek_v3
from r1jax.models.families.deepseek_v3 import HF_COPIES, HF_NAMES, VARIANTS, from_hf, to_hf
from r1jax.models.mla import LatentSizes
from r1jax.models.mtp import predict_ahead
from r1jax.models.rope import YaRN
from r1jax.models.sparse import IndexSizes
from r1jax.models.transformer import Params, merge, split, stack
from r1jax.weights import load_pretrained
from r1jax.weights.hf import load_weights
from tests.models.toy import assert_close

GOLDENS = Path(__file__).parents[2] / "goldens" / "deepseek"
MODELS = ["v3_latent", "v3_direct", "v2_lite", "v2_grouped"]
NAMES = pytest.mark.parametrize("name", MODELS)
TOLERANCE = 2e-4


@functools.cache
def load(name: str, **options: Any) -> tuple[nnx.GraphDef, Params]:
    return split(load_pretrained(GOLDENS / name, **options)[0])


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDENS / name / "expected.npz"))


compiled = functools.cache(lambda graph: jax.jit(lambda params, rows, **kw: merge(graph, params)(rows, **kw)))


# --- Against transformers ---


@NAMES
def test_logits_are_those_of_transformers(name: str) -> None:
    graph, params = load(name)
    found = compiled(graph)(params, golden(name)["tokens"])
    np.testing.assert_allclose(found, golden(name)["logits"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "form"), [(name, "auto") for name in MODELS] + [("v3_latent", "plain")])
def test_greedy_tokens_through_the_cache_are_those_of_generate(name: str, form: str) -> None:
    """A prefill, then token by token in one loop; absorbed but for the prefill where the form is free."""
    graph, params = load(name, attention_form=form)
    prompts, expected = golden(name)["prompts"], golden(name)["continuation"]
    (B, start), count = prompts.shape, expected.shape[1]

    @jax.jit
    def generate(params: Params) -> jax.Array:
        model = merge(graph, params)
        logits, cache = model(prompts, cache=model.init_cache(B, start + count))

        def step(carry: tuple, position: jax.Array) -> tuple[tuple, jax.Array]:
            token, cache = carry
            logits, cache = model(token[:, None], positions=jnp.full((B, 1), position), cache=cache)
            return (logits[:, 0].argmax(-1), cache), token

        first = (logits[:, -1].argmax(-1), cache)
        return jax.lax.scan(step, first, start + jnp.arange(count))[1].T

    assert (np.asarray(generate(params)) == expected).all()


class Gradients:
    """Golden gradients in place of the tensors of a model's files."""

    def __init__(self) -> None:
        self.path, self.arrays = GOLDENS / "gradient.npz", dict(np.load(GOLDENS / "v3_latent" / "gradient.npz"))

    def __contains__(self, name: str) -> bool:
        return name in self.arrays or name.endswith("correction_bias")

    def shape(self, name: str) -> tuple[int, ...]:
        return self.read(name).shape

    def dtype(self, name: str) -> str:
        return "float32"

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        whole = self.arrays[name] if name in self.arrays else np.zeros(8, np.float32)  # a buffer there, no parameter
        return whole if rows is None else whole[slice(*rows)]

    def count_bytes(self, name: str, rows: tuple[int, int] | None = None) -> int:
        return self.read(name, rows).nbytes


@pytest.mark.parametrize("options", [{}, {"attention_form": "absorbed", "remat": "full"}])
def test_gradient_is_that_of_autograd(options: dict[str, Any]) -> None:
    """Every tensor within 1e-3 of its norm; the correction bias has none."""
    graph, params = load("v3_latent", **options)
    rows = golden("v3_latent")["tokens"]

    @jax.jit
    @jax.value_and_grad
    def loss(params: Params) -> jax.Array:
        model = merge(graph, params)
        total, weight = next_token_loss(model.hidden(rows).hidden, rows, model.unembed)
        return total / weight

    value, gradient = loss(params)
    source = Gradients()
    assert float(value) == pytest.approx(float(source.arrays["loss"]), rel=1e-5)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient.pop("mtp")))
    config = dataclasses.replace(merge(graph, params).config, mtp_depths=0)
    expected = split(load_weights(lambda: deepseek_v3.build(config, rngs=nnx.Rngs(0)), HF_NAMES, source))[1]
    expected.pop("mtp", None)
    assert_close(gradient, expected, 1e-3)


def test_prediction_depth_is_that_of_the_torch_module() -> None:
    graph, params = load("v3_latent")
    rows = golden("v3_latent")["tokens"]

    @jax.jit
    def run(params: Params) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        model = merge(graph, params)
        states = model.hidden(rows)
        (depth,), router = predict_ahead(model, states.hidden, rows)
        return model.unembed(depth), states.router, router

    logits, main, ahead = run(params)
    np.testing.assert_allclose(logits[:, :-1], golden("v3_latent")["mtp_logits"], rtol=0, atol=TOLERANCE)
    assert main["load"].shape == (2, 8) and main["balance"].shape == (2,) and ahead["load"].shape == (1, 8)
    assert main["load"].sum() == 2 * 2 * rows.size  # two layers, two experts a token


def test_a_depth_that_the_files_lack_is_no_depth() -> None:
    assert json.loads((GOLDENS / "v3_direct" / "config.json").read_text())["num_nextn_predict_layers"] == 1
    model, _ = load_pretrained(GOLDENS / "v3_direct")
    assert model.mtp is None and model.config.mtp_depths == 0


# --- The forms of the model agree ---


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("v3_latent", {"scan_layers": True, "remat": "full"}),
        ("v3_latent", {"attention_form": "absorbed"}),
        ("v3_latent", {"dispatch": Dispatch("dense")}),
        ("v2_lite", {"scan_layers": True, "attention_form": "absorbed", "dispatch": Dispatch("dense")}),
        ("v2_grouped", {"dispatch": Dispatch("dense")}),
    ],
)
def test_forms_agree(name: str, options: dict[str, Any]) -> None:
    """Within 1e-5 of the norm of the logits; scanned layers hold the same weights in stacks."""
    graph, params = load(name)
    other_graph, other = load(name, **options)
    if options.get("scan_layers"):
        expected = stack(params, merge(graph, params).counts)
        chex.assert_trees_all_equal(other, expected)
    rows = golden(name)["tokens"]
    assert_close(compiled(other_graph)(other, rows), compiled(graph)(params, rows))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_packed_and_padded_rows_equal_rows_of_their_own(scan_layers: bool) -> None:
    """Padding is counted by no router."""
    graph, params = load("v3_latent", scan_layers=scan_layers)
    first, second = golden("v3_latent")["tokens"][:2, :20]
    row = np.concatenate([first, second, np.zeros(24, np.int32)])[None]
    packing = {
        "segment_ids": np.repeat([1, 2, 0], [20, 20, 24])[None],
        "positions": np.concatenate([np.arange(20), np.arange(20), np.zeros(24, int)])[None],
    }
    packed = compiled(graph)(params, row, **packing)[0]
    alone = compiled(graph)(params, np.stack([first, second]))
    assert_close(packed[:40].reshape(2, 20, -1), alone)
    router = jax.jit(lambda params: merge(graph, params).hidden(row, **packing).router)(params)
    assert (router["load"].sum(-1) == 40 * 2).all() and np.isfinite(packed).all()


# --- Config, names, presets ---

HUB = {  # what matters of DeepSeek-V3's config.json
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 129280,
}


def test_v3_as_the_hub_writes_it() -> None:
    assert from_hf(HUB) == VARIANTS["deepseek_v3_671b"]
    written = to_hf(from_hf(HUB))
    assert all(written[key] == value for key, value in HUB.items() if key != "rope_scaling")


@pytest.mark.parametrize("name", VARIANTS)
def test_configs_are_read_as_they_are_written(name: str) -> None:
    config = VARIANTS[name]
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config
    yarn = dataclasses.replace(config, rope_scaling=YaRN(8.0, 64, mscale_all_dim=0.5), expert_interval=2)
    assert from_hf(to_hf(yarn)) == yarn


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias = True is not known for this family"),
        ({"scoring_func": "softmax"}, "scoring_func = 'softmax' is not known for this family; known: 'sigmoid'"),
        ({"topk_method": "greedy"}, "topk_method = 'greedy' is not known"),
        ({"model_type": "deepseek_v2"}, "scoring_func = 'sigmoid' is not known"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_hf({**HUB, **change})


def count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_v3_builds_without_arrays_and_counts_as_published() -> None:
    """671B, and 11.6B of its prediction depth, which has embedding and head of the model in common."""
    config = VARIANTS["deepseek_v3_671b"]
    shapes = split(nnx.eval_shape(lambda: deepseek_v3.build(config, rngs=nnx.Rngs(0), scan_layers=True)))[1]
    assert count(shapes) - count(shapes["mtp"]) == 671_026_419_200
    assert count(shapes["mtp"]) == 11_610_068_224
    assert [jax.tree.leaves(shapes["stacks"][group])[0].shape[0] for group in (0, 1)] == [3, 58]


def test_v2_lite_counts_as_published() -> None:
    config = VARIANTS["deepseek_v2_lite_16b"]
    shapes = split(nnx.eval_shape(lambda: deepseek_v3.build(config, rngs=nnx.Rngs(0), scan_layers=True)))[1]
    assert count(shapes) == 15_706_484_224


def test_latent_cache_of_v3_holds_576_values_a_token_and_layer() -> None:
    config = dataclasses.replace(VARIANTS["deepseek_v3_671b"], num_layers=4)
    cache = jax.eval_shape(lambda: deepseek_v3.build(config, rngs=nnx.Rngs(0)).init_cache(2, 5))
    assert count(cache.layers) == 4 * 2 * 5 * 576


@pytest.mark.parametrize("query_latent, index", [(0, None), (24, None), (24, IndexSizes(2, 16, 4))])
def test_every_parameter_has_a_name_in_the_files(query_latent: int, index: IndexSizes | None) -> None:
    latents = LatentSizes(query_latent, 32, 16, 8, 12)
    config = deepseek_v3.Config(latents=latents, expert_interval=2, num_layers=4, index=index)
    shapes = split(nnx.eval_shape(lambda: deepseek_v3.build(config, rngs=nnx.Rngs(0))))[1]
    paths = [[entry.key for entry in path] for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    names = {".".join("{}" if isinstance(key, int) else key for key in path) for path in paths}
    unused = ".attention.query." if query_latent else ".attention.query_"
    absent = {name for name in HF_NAMES if unused in name or (index is None and ".indexer." in name)}
    assert names == set(HF_NAMES) - absent - {"mtp.{}.block.mlp." + f"{part}.kernel" for part in ("gate", "up", "down")}
    assert set(HF_COPIES.values()) < names
    assert ["experts" in shapes["layers"][layer]["mlp"] for layer in range(4)] == [False, False, True, False]
