"""A GGUF file is the same model as the Hugging Face folder it was made of."""

from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers.pre_tokenizers import ByteLevel

from r1jax.core.errors import UserError
from r1jax.models import load_pretrained
from r1jax.models.transformer import split
from tests.tiny_model import CONFIG, SPECIALS, write_tiny_model

KEYS = {
    "llama.block_count": CONFIG["num_hidden_layers"],
    "llama.embedding_length": CONFIG["hidden_size"],
    "llama.feed_forward_length": CONFIG["intermediate_size"],
    "llama.attention.head_count": CONFIG["num_attention_heads"],
    "llama.attention.head_count_kv": CONFIG["num_key_value_heads"],
    "llama.attention.key_length": CONFIG["head_dim"],
    "llama.attention.layer_norm_rms_epsilon": CONFIG["rms_norm_eps"],
    "llama.rope.freq_base": CONFIG["rope_theta"],
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
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


def write_gguf(folder: Path, **changes: Any) -> Path:
    """The folder's weights as model.gguf; `changes` replace header values by the end of their key (None: left out)."""
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in KEYS.items():
        value = changes.pop(key.rpartition(".")[2], value)
        if value is not None:
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    for key, value in changes.items():
        writer.add_string(f"llama.{key.replace('__', '.')}", value)
    vocabulary = [*SPECIALS, *sorted(ByteLevel.alphabet()), "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_merges(["a b"])
    writer.add_token_types([3 if token in SPECIALS else 1 for token in vocabulary])
    writer.add_eos_token_id(2)
    for name, value in load_file(folder / "model.safetensors").items():
        for suffix, heads in (("q_proj", CONFIG["num_attention_heads"]), ("k_proj", CONFIG["num_key_value_heads"])):
            value = permute(value, heads) if name.endswith(f"{suffix}.weight") else value
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [False, True])
def test_weights_and_sizes_are_those_of_the_folder(tmp_path: Path, tied: bool) -> None:
    folder = write_tiny_model(tmp_path, tie_word_embeddings=tied)
    expected, _ = load_pretrained(folder)
    model, tokenizer = load_pretrained(write_gguf(folder))
    jax.tree.map(np.testing.assert_array_equal, split(model)[1], split(expected)[1])
    assert {**vars(model.config), "norm_epsilon": 0} == {**vars(expected.config), "norm_epsilon": 0}
    assert model.config.norm_epsilon == pytest.approx(expected.config.norm_epsilon)
    assert tokenizer is not None and tokenizer.eos_ids == (2,) and tokenizer.encode("abb") == [260, 69]


def test_as_many_kv_heads_may_go_unsaid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIG, "num_key_value_heads", 16)
    folder = write_tiny_model(tmp_path)
    model, _ = load_pretrained(write_gguf(folder, head_count_kv=None))
    jax.tree.map(np.testing.assert_array_equal, split(model)[1], split(load_pretrained(folder)[0])[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_count": None}, "the header lacks llama.block_count"),
        ({"rope__scaling__type": "yarn"}, "rope scaling is not read from GGUF; use the model's Hugging Face folder"),
    ],
)
def test_a_header_that_says_too_little_or_too_much(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"model.gguf: {message}"):
        load_pretrained(write_gguf(write_tiny_model(tmp_path), **change))
