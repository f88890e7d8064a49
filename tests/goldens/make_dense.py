"""Writes dense/NAME/ beside this script: tiny Llama, Qwen2 and Qwen3 models as the hub has them, and what transformers
computes.

usage: python tests/goldens/make_dense.py       (seconds; no network)
needs: torch, transformers 5, safetensors. Written with transformers 5.24, torch 2.13 on CPU, float32 throughout.

config.json, model.safetensors
    random weights of bfloat16 precision
expected.npz
    tokens int32 [3, 64] and the logits float32 [3, 64, V] of one forward pass; prompts int32 [3, 12] and what
    `generate` continues them with greedily, continuation int32 [3, 40]
gradient.npz (`qwen2_yarn`)
    `loss`, the mean of -log p of tokens[:, 1:], and its gradient by each tensor's name

NAME: llama_scaled (Llama 3.1's rope scaling, untied), llama_tied (SmolLM2's shape, the newer `rope_parameters`),
qwen2_tied (a sliding window that is switched off), qwen2_yarn (untied, YaRN), qwen3_tied (heads wider than width over
heads), qwen3_narrow (untied, narrower heads, the newer `rope_parameters` with YaRN).

The seeds are ones with which no greedy token hangs on a small difference, which another order of float32 sums could
turn.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

HERE = Path(__file__).parent / "dense"
NEW_TOKENS = 40
NARROWEST_TOKEN = 0.01
COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "mlp_bias": False}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "use_sliding_window": False}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama_scaled": {
        **COMMON,
        **LLAMA,
        "rope_theta": 500.0,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 32,
            "rope_type": "llama3",
        },
    },
    "llama_tied": {
        **{key: value for key, value in COMMON.items() if key != "rope_theta"},
        **LLAMA,
        "hidden_size": 36,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 300.0, "rope_type": "default"},
    },
    "qwen2_tied": {
        **COMMON,
        **QWEN2,
        "tie_word_embeddings": True,
        "num_key_value_heads": 1,
        "sliding_window": 16,
        "max_window_layers": 1,
        "rope_theta": 1000.0,
    },
    "qwen2_yarn": {**COMMON, **QWEN2, "rope_scaling": {**YARN, "type": "yarn"}},
    "qwen3_tied": {**COMMON, **QWEN3, "tie_word_embeddings": True, "head_dim": 12, "rope_theta": 1000.0},
    "qwen3_narrow": {
        **{key: value for key, value in COMMON.items() if key != "rope_theta"},
        **QWEN3,
        "head_dim": 6,
        "num_key_value_heads": 4,
        "rope_parameters": {**YARN, "rope_type": "yarn", "rope_theta": 10000.0},
    },
}


def draw_weights(config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Random tensors under the hub's names, all values of bfloat16 precision."""
    width, hidden, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim", width // heads)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, width)
    for layer in (f"model.layers.{i}" for i in range(config["num_hidden_layers"])):
        for name, rows in {"q": heads * head, "k": kv_heads * head, "v": kv_heads * head}.items():
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, width)
            if config["model_type"] == "qwen2":
                shapes[f"{layer}.self_attn.{name}_proj.bias"] = (rows,)
            if config["model_type"] == "qwen3" and name != "v":
                shapes[f"{layer}.self_attn.{name}_norm.weight"] = (head,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (width, heads * head)
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (hidden, width) for name in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, hidden)
        shapes |= {f"{layer}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    random, tensors = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        if name.endswith("bias"):
            tensor = 0.5 * torch.randn(shape, generator=random)
        elif len(shape) == 1:
            tensor = 0.5 + torch.rand(shape, generator=random)
        else:
            tensor = torch.randn(shape, generator=random) * (1.0 if "embed" in name else 1.5 / shape[1] ** 0.5)
        tensors[name] = tensor.to(torch.bfloat16)
    return tensors


@torch.no_grad()
def continue_greedily(model: PreTrainedModel, prompts: torch.Tensor) -> tuple[torch.Tensor, float]:
    """What `generate` continues with, and the narrowest margin by which a token won."""
    output = model.generate(
        prompts, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=-1, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    best = torch.stack(output.logits).topk(2).values
    return output.sequences[:, prompts.shape[1] :], float((best[..., 0] - best[..., 1]).min())


def write(name: str, seed: int) -> bool:
    """One folder; False if a token hung on too small a difference."""
    config, folder = CONFIGS[name], HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(draw_weights(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, config["vocab_size"], (3, 64), generator=random)
    prompts = tokens[:, :12]
    logits = model(tokens).logits
    continuation, narrowest = continue_greedily(model, prompts)
    if narrowest < NARROWEST_TOKEN:
        return False
    print(f"{name}: seed {seed}, narrowest token {narrowest:.4f}")
    arrays = {"tokens": tokens, "logits": logits.detach(), "prompts": prompts, "continuation": continuation}
    np.savez_compressed(
        folder / "expected.npz",
        **{k: np.asarray(v, np.float32 if k == "logits" else np.int32) for k, v in arrays.items()},
    )
    if name == "qwen2_yarn":
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        gradients = {key: value.grad.numpy() for key, value in model.named_parameters()}
        np.savez_compressed(folder / "gradient.npz", loss=np.float32(loss.item()), **gradients)
    return True


if __name__ == "__main__":
    for name in CONFIGS:
        next(seed for seed in range(200) if write(name, seed))
