"""A GGUF file is the same model as the Hugging Face folder it was made of."""

import json
import shutil
from pathlib import Path
from typing import Any

import chex
import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers.pre_tokenizers import ByteLevel

from r1jax.core.errors import UserError
from r1jax.models.rope import RopeScaling
from r1jax.models.transformer import split
from r1jax.weights import load_pretrained
from tests.models import golden, naive
from tests.tiny_model import CONFIG, SPECIALS, write_tiny_model

F32 = gguf.GGMLQuantizationType.F32
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp's converter writes them: of each head, one of its first half, one of its second, and so on."""
    return np.concatenate([np.stack(np.split(head, 2), axis=1).reshape(head.shape) for head in np.split(weight, heads)])


def write_gguf(
    folder: Path, kind: gguf.GGMLQuantizationType = F32, *, extra: dict[str, np.ndarray] | None = None, **changes: Any
) -> Path:
    """The folder's weights as model.gguf, matrices stored as `kind`; `changes` replace header values by the end of
    their key (None: left out), `extra` are tensors to be added.
    """
    path, config = folder / "model.gguf", json.loads((folder / "config.json").read_text())
    architecture = config["model_type"]
    heads = {name: config[f"num_{kind}_heads"] for name, kind in (("q", "attention"), ("k", "key_value"))}
    keys = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads["q"],
        "attention.head_count_kv": heads["k"],
        "attention.key_length": config.get("head_dim"),
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config["rope_theta"],
    }
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        value = changes.pop(key.rpartition(".")[2], value)
        if value is not None:
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{architecture}.{key}", value)
    for key, value in changes.items():
        writer.add_string(f"{architecture}.{key.replace('__', '.')}", value)
    vocabulary = [*SPECIALS, *sorted(ByteLevel.alphabet()), "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_merges(["a b"])
    writer.add_token_types([3 if token in SPECIALS else 1 for token in vocabulary])
    writer.add_eos_token_id(2)
    for name, value in (load_file(folder / "model.safetensors") | (extra or {})).items():
        for projection, count in heads.items() if architecture == "llama" else ():
            value = permute(value, count) if f"{projection}_proj" in name else value
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        if value.ndim == 1 or kind == F32:
            writer.add_tensor(name, value.astype(np.float32))
        else:
            writer.add_tensor(name, quantize(value.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantize(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Bytes of rows as `kind`; of the kinds that the package does not write, random blocks with tame scales."""
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        size, length = gguf.GGML_QUANT_SIZES[kind]
        random = np.random.default_rng(values.size)
        blocks = random.integers(0, 256, (len(values), values.shape[1] // size, length), np.uint8)
        scales = np.array([0.01, 0.02], np.float16).view(np.uint8)
        if kind.name == "Q6_K":  # its one scale comes last, the two of Q4_K and Q5_K first
            blocks[..., -2:] = scales[:2]
        else:
            blocks[..., :4] = scales
        return blocks.reshape(len(values), -1)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_and_sizes_are_those_of_the_folder(tmp_path: Path, tied: bool) -> None:
    folder = write_tiny_model(tmp_path, tie_word_embeddings=tied)
    expected, _ = load_pretrained(folder)
    model, tokenizer = load_pretrained(write_gguf(folder))
    assert model.config.max_positions == CONFIG["max_position_embeddings"]
    chex.assert_trees_all_equal(split(model)[1], split(expected)[1])
    assert {**vars(model.config), "norm_epsilon": 0} == {**vars(expected.config), "norm_epsilon": 0}
    assert model.config.norm_epsilon == pytest.approx(expected.config.norm_epsilon)
    assert tokenizer is not None and tokenizer.eos_ids == (2,) and tokenizer.encode("abb") == [260, 69]


def test_as_many_kv_heads_may_go_unsaid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIG, "num_key_value_heads", 16)
    folder = write_tiny_model(tmp_path)
    model, _ = load_pretrained(write_gguf(folder, head_count_kv=None))
    chex.assert_trees_all_equal(split(model)[1], split(load_pretrained(folder)[0])[1])


@pytest.mark.parametrize("name", ["qwen2_tied", "qwen3_tied"])
def test_biases_and_norms_of_the_qwens_arrive_where_they_belong(tmp_path: Path, name: str) -> None:
    shutil.copytree(golden.DENSE / name, tmp_path, dirs_exist_ok=True)
    expected, _ = load_pretrained(tmp_path)
    model, _ = load_pretrained(write_gguf(tmp_path))
    chex.assert_trees_all_equal(split(model)[1], split(expected)[1])
    same = {"norm_epsilon": pytest.approx(expected.config.norm_epsilon), "max_positions": 128}
    assert vars(model.config) == {**vars(expected.config), **same}


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_quantized_blocks_are_what_the_format_says(tmp_path: Path, kind: str) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 32, "num_hidden_layers": 1}
    folder, stored = write_tiny_model(tmp_path, **sizes), gguf.GGMLQuantizationType[kind]
    path = write_gguf(folder, stored)
    layer = split(load_pretrained(path)[0])[1]["layers"][0]
    tensors = load_file(folder / "model.safetensors")
    rows = lambda name: gguf.quants.dequantize(quantize(tensors[f"model.layers.0.{name}.weight"], stored), stored)
    np.testing.assert_array_equal(layer["mlp"]["gate"]["kernel"], rows("mlp.gate_proj").T)
    np.testing.assert_array_equal(layer["attention"]["out"]["kernel"].reshape(256, 256), rows("self_attn.o_proj").T)
    if not kind.endswith("_K"):
        np.testing.assert_array_equal(layer["attention"]["key"]["kernel"].reshape(256, 64), rows("self_attn.k_proj").T)
    np.testing.assert_array_equal(layer["mlp_norm"]["scale"], tensors["model.layers.0.post_attention_layernorm.weight"])


def rope_factors(head_dim: int, theta: float, factor: float) -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3.1: by how much each pair's frequency is divided."""
    frequencies = lambda scaling: naive.frequencies(head_dim, theta, scaling)
    return (frequencies(None) / frequencies(RopeScaling("llama3", factor))).astype(np.float32)


def test_llama_31s_rope_scaling_is_read_from_its_factors(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, rope_theta=500_000.0)
    factors = rope_factors(CONFIG["head_dim"], 500_000.0, 32.0)
    model, _ = load_pretrained(write_gguf(folder, extra={"rope_freqs.weight": factors}))
    assert model.config.rope_scaling == RopeScaling("llama3", 32.0)
    with pytest.raises(
        UserError, match="model.gguf: rope_freqs.weight is not Llama 3.1's rope scaling; use the model's"
    ):
        load_pretrained(write_gguf(folder, extra={"rope_freqs.weight": factors + np.arange(4, dtype=np.float32)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_count": None}, "the header lacks llama.block_count"),
        ({"rope__scaling__type": "yarn"}, "llama.rope.scaling is not supported; use the model's Hugging Face folder"),
    ],
)
def test_a_header_that_says_too_little_or_too_much(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"model.gguf: {message}"):
        load_pretrained(write_gguf(write_tiny_model(tmp_path), **change))


def test_an_unknown_architecture_and_a_file_cut_off_are_named(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    path = write_gguf(folder)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"model\.gguf: cut off: tensor '\S+' ends at byte \d+, the file at \d+"):
        load_pretrained(path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bloom"}))
    with pytest.raises(
        UserError, match=r"model\.gguf: unknown model_type 'bloom'; known in this format: .*qwen2, qwen3"
    ):
        load_pretrained(write_gguf(folder))


def write_family(folder: Path, **changes: Any) -> Path:
    """A family's folder as llama.cpp's converter writes it, by the names of its own package."""
    path, config = folder / "model.gguf", json.loads((folder / "config.json").read_text())
    kind = gguf.MODEL_ARCH[config["model_type"].removesuffix("_text").upper().replace("_", "")]
    architecture, layers = gguf.MODEL_ARCH_NAMES[kind], config["num_hidden_layers"]
    names, is_gemma = gguf.get_tensor_name_map(kind, layers), "gemma" in architecture
    writer = gguf.GGUFWriter(path, architecture)
    rope = config.get("rope_parameters") or {}
    whole = rope.get("full_attention", rope) or {"rope_theta": config.get("rope_theta"), "rope_type": "default"}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
    if is_gemma:
        writer.add_sliding_window(config["sliding_window"])
    if changes.get("window"):
        writer.add_sliding_window(changes["window"])
    if architecture == "qwen3moe":
        writer.add_expert_count(config.get("num_experts") or config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_rope_freq_base(whole["rope_theta"])
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    elif whole["rope_type"] != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(changes.get("scaling", whole["rope_type"])))
        writer.add_rope_scaling_factor(whole["factor"])
    vocabulary = ["<pad>", "<eos>", "<bos>", "<unk>", *(chr(0x100 + at) for at in range(config["vocab_size"] - 4))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary)
    writer.add_token_scores([0.0] * len(vocabulary))
    writer.add_token_types([3, 3, 3, 2, *[1] * (len(vocabulary) - 4)])
    for token, add in enumerate((writer.add_pad_token_id, writer.add_eos_token_id, writer.add_bos_token_id)):
        add(token)
    tensors = load_file(folder / "model.safetensors")
    for stem in sorted({name.partition(".experts.")[0] for name in tensors if ".experts." in name}):
        for part in ("gate", "up", "down"):
            each = [f"{stem}.experts.{expert}.{part}_proj.weight" for expert in range(len(tensors))]
            each = [name for name in each if name in tensors]
            tensors[f"{stem}.experts.{part}_proj.weight"] = np.stack([tensors.pop(name) for name in each])
    for name, value in tensors.items():
        value = value.astype(np.float32) + (1 if is_gemma and name.endswith("norm.weight") else 0)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_gemmas_are_those_of_their_folders(tmp_path: Path, name: str) -> None:
    shutil.copytree(golden.DENSE.with_name("families") / name, tmp_path, dirs_exist_ok=True)
    expected, _ = load_pretrained(tmp_path)
    model, tokenizer = load_pretrained(write_family(tmp_path))
    assert tokenizer is not None and tokenizer.eos_ids == (1,)
    chex.assert_trees_all_close(split(model)[1], split(expected)[1], rtol=0, atol=2**-22)  # 1 is added and taken away
    ours, theirs = vars(model.config), vars(expected.config)
    free = {
        "norm_epsilon",
        "initializer_std",
        "query_scalar",
        "interval",
        "local_theta",
    }
    assert {**ours, **dict.fromkeys(free)} == {**theirs, **dict.fromkeys(free)}
    assert model.config.query_scalar == model.config.head_dim


@pytest.mark.parametrize("folder", ["families/olmo2", "qwen3_moe/tied"])
def test_other_families_are_those_of_their_folders(tmp_path: Path, folder: str) -> None:
    shutil.copytree(golden.DENSE.parent / folder, tmp_path, dirs_exist_ok=True)
    expected, _ = load_pretrained(tmp_path)
    path = write_family(tmp_path)
    model, _ = load_pretrained(path)
    chex.assert_trees_all_equal(split(model)[1], split(expected)[1])
    free = {"norm_epsilon", "initializer_std", "rope_theta"}
    assert {**vars(model.config), **dict.fromkeys(free)} == {**vars(expected.config), **dict.fromkeys(free)}
    assert model.config.rope_theta == pytest.approx(expected.config.rope_theta)


def test_olmo_3_is_refused(tmp_path: Path) -> None:
    shutil.copytree(golden.DENSE.with_name("families") / "olmo2", tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"OLMo 3 is not supported in this format"):
        load_pretrained(write_family(tmp_path, window=8))


def test_another_scaling_of_gemma_is_refused(tmp_path: Path) -> None:
    shutil.copytree(golden.DENSE.with_name("families") / "gemma3", tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"gemma3\.rope\.scaling is not supported"):
        load_pretrained(write_family(tmp_path, scaling="yarn"))
