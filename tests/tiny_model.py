"""A tiny Llama as a real Hugging Face folder: random weights, a byte vocabulary, a chat template, two stop ids.

Everything that reads a model from disk can run on it in seconds. Its sizes divide by 2, 4 and 8, so that every mesh of
the tests can split them; its table is larger than its vocabulary, as that of many released models is; its weights are
wide enough that tokens have clearly different probabilities.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from r1jax.text.tokenizer import Tokenizer

SPECIALS = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
STOP_IDS = (2, 3)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 304,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write_tiny_model(folder: pathlib.Path, *, seed: int = 0, **changes: Any) -> pathlib.Path:
    """Writes the folder and returns it; `changes` replace entries of its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, **changes}
    save_file(_draw_weights(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    dataclasses.replace(Tokenizer.of_bytes(SPECIALS), chat_template=CHAT_TEMPLATE).save(folder)
    for name, content in {"config": config, "generation_config": {"eos_token_id": list(STOP_IDS)}}.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return folder


def _draw_weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    width, hidden, vocab = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    queries, keys = (config[f"num_{kind}_heads"] * config["head_dim"] for kind in ("attention", "key_value"))
    matrices = {"model.embed_tokens": (vocab, width)}
    if not config["tie_word_embeddings"]:
        matrices["lm_head"] = (vocab, width)
    norms = ["model.norm"]
    for layer in (f"model.layers.{number}" for number in range(config["num_hidden_layers"])):
        for name, rows in {"q": queries, "k": keys, "v": keys}.items():
            matrices[f"{layer}.self_attn.{name}_proj"] = (rows, width)
        matrices[f"{layer}.self_attn.o_proj"] = (width, queries)
        for name in ("gate", "up"):
            matrices[f"{layer}.mlp.{name}_proj"] = (hidden, width)
        matrices[f"{layer}.mlp.down_proj"] = (width, hidden)
        norms += [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
    weights = {name: generator.normal(0, 0.15, shape) for name, shape in matrices.items()}
    weights |= {name: generator.uniform(0.5, 1.5, width) for name in norms}
    return {f"{name}.weight": value.astype(np.float32) for name, value in weights.items()}
