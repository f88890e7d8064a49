"""Writes families/NAME/ beside this script: tiny models as transformers saves them, and what it computes of them.

usage: python tests/goldens/make_families.py [NAME ...]       (a minute; no network)
needs: torch, transformers 5, safetensors. Written with transformers 5.24, torch 2.13 on CPU, float32 throughout.

config.json, model.safetensors
    as `save_pretrained` writes them; random weights of bfloat16 precision
expected.npz
    tokens int32 [2, 40], the logits float32 [2, 40, V] of one forward pass; prompts int32 [2, 9] and what `generate`
    continues them with greedily, continuation int32 [2, 32]
gradient.npz
    `loss`, the mean of -log p of tokens[:, 1:], and its gradient by each tensor's name in the files

The seeds are ones with which no greedy token and no choice of an expert hangs on a small difference, which another
order of float32 sums could turn.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

HERE = Path(__file__).parent / "families"
NEW_TOKENS, NARROWEST_TOKEN, NARROWEST_EXPERT = 32, 0.01, 2e-5
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2, "norm_topk_prob": True}
DELTA = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "num_experts": 8,
    "shared_expert_intermediate_size": 16,
}
LATENT: dict[str, Any] = {
    **{key: value for key, value in SMALL.items() if key != "head_dim"},
    **EXPERTS,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "routed_scaling_factor": 1.8,
}
GEMMA4: dict[str, Any] = {
    **SMALL,
    "model_type": "gemma4_text",
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 3,
    "num_key_value_heads": 4,
    "num_global_key_value_heads": 2,
    "global_head_dim": 16,
    "tie_word_embeddings": True,
    "sliding_window": 8,
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 8.0,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma2": {
        **SMALL,
        "model_type": "gemma2",
        "num_hidden_layers": 4,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "sliding_window": 8,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 6.0,
    },
    "gemma3": {
        **SMALL,
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "head_dim": 16,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "sliding_window": 8,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 16,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "rope_theta": 1000.0,
        "rope_local_base_freq": 100.0,
    },
    "gemma4": {**GEMMA4, "num_hidden_layers": 6, "layer_types": GEMMA4["layer_types"][:6], "attention_k_eq_v": True},
    "gemma4_moe": {
        **GEMMA4,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "moe_intermediate_size": 16,
        "num_experts": 8,
        "top_k_experts": 3,
    },
    "gemma4_shared": {
        **GEMMA4,
        "num_hidden_layers": 9,
        "num_key_value_heads": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
        "num_kv_shared_layers": 6,
        "use_double_wide_mlp": True,
    },
    "olmo2": {**SMALL, "model_type": "olmo2", "head_dim": None},
    "olmo3": {
        **SMALL,
        "model_type": "olmo3",
        "num_hidden_layers": 4,
        "head_dim": None,
        "sliding_window": 8,
        "rope_parameters": {
            "full_attention": YARN,
            "sliding_attention": {"rope_type": "default", "rope_theta": YARN["rope_theta"]},
        },
    },
    "smollm3": {
        **SMALL,
        "model_type": "smollm3",
        "num_hidden_layers": 4,
        "head_dim": None,
        "tie_word_embeddings": True,
    },
    "mistral": {**SMALL, "model_type": "mistral", "head_dim": 12, "sliding_window": 8},
    "ministral": {
        **SMALL,
        "model_type": "ministral",
        "num_hidden_layers": 4,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "ministral3": {
        **SMALL,
        "model_type": "ministral3",
        "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5},
    },
    "phi3": {
        **SMALL,
        "model_type": "phi3",
        "head_dim": None,
        "max_position_embeddings": 96,
        "original_max_position_embeddings": 48,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.5, 4.0]},
        "sliding_window": 200,
    },
    "glm4_moe": {
        **SMALL,
        **EXPERTS,
        "model_type": "glm4_moe",
        "num_hidden_layers": 3,
        "attention_bias": True,
        "use_qk_norm": True,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "routed_scaling_factor": 1.5,
        "num_mtp_layers": 0,
    },
    "gpt_oss": {
        **SMALL,
        "model_type": "gpt_oss",
        "num_hidden_layers": 4,
        "intermediate_size": 16,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "sliding_window": 8,
        "rope_parameters": {**YARN, "truncate": False},
    },
    "llama4": {
        **SMALL,
        "model_type": "llama4_text",
        "num_hidden_layers": 4,
        "intermediate_size": 16,
        "intermediate_size_mlp": 48,
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 8,
        "floor_scale": 8,
        "attn_scale": 0.3,
    },
    "qwen3_next": {**SMALL, **EXPERTS, **DELTA, "model_type": "qwen3_next"},
    "qwen3_5": {**SMALL, **DELTA, "model_type": "qwen3_5_text"},
    "qwen3_5_moe": {**SMALL, **EXPERTS, **DELTA, "model_type": "qwen3_5_moe_text"},
    "glm4_moe_lite": {
        **LATENT,
        "model_type": "glm4_moe_lite",
    },
    "deepseek_v32": {
        **LATENT,
        "model_type": "deepseek_v32",
        "first_k_dense_replace": 1,
        "n_group": 4,
        "topk_group": 2,
        "index_topk": 12,
        "index_head_dim": 8,
        "index_n_heads": 16,
        "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "minimax_m2": {
        **SMALL,
        "model_type": "minimax_m2",
        "intermediate_size": 16,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "rotary_dim": 4,
    },
}


def is_stored(name: str) -> bool:
    """Whether a buffer without gradient is among the tensors of the files."""
    return "correction_bias" in name or name.endswith("layer_scalar")


def draw_weights(model: PreTrainedModel, seed: int) -> None:
    """Random values of bfloat16 precision in all parameters, and in the buffers that files hold."""
    random = torch.Generator().manual_seed(seed)
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if is_stored(name)]
    for name, tensor in [*model.named_parameters(), *buffers]:
        if "correction_bias" in name:
            value = 0.1 * torch.randn(tensor.shape, generator=random)
        elif name.endswith("bias") or "sinks" in name or name.endswith(("dt_bias", "A_log")):
            value = 0.5 * torch.randn(tensor.shape, generator=random)
        elif tensor.ndim == 1:
            offset = any(kind in model.config.model_type for kind in ("gemma2", "gemma3", "qwen3_next", "qwen3_5"))
            offset &= "linear_attn" not in name
            value = torch.rand(tensor.shape, generator=random) + (-0.5 if offset else 0.5)
            if "gemma4" in model.config.model_type and any(part in name for part in ("q_norm", "post_")):
                value = value / 2  # with whole steps many layers make rounding grow
        elif "embed" in name:
            value = torch.randn(tensor.shape, generator=random) * (0.3 if "gemma" in model.config.model_type else 1.0)
        else:
            inputs = tensor.shape[1] if tensor.ndim == 2 else max(tensor.shape[1:])
            gain = 0.75 if "qwen3_next" in model.config.model_type or "qwen3_5" in model.config.model_type else 1.5
            gain = 0.3 if "per_layer_input_gate" in name else gain  # a norm follows: not all of a token may vanish
            value = torch.randn(tensor.shape, generator=random) * gain / inputs**0.5
        tensor.data.copy_(value.to(torch.bfloat16).to(torch.float32))


def watch_choices(model: PreTrainedModel) -> list[float]:
    """Grows, as the model runs, by how far the last chosen expert of any token lay before the next."""
    margins: list[float] = [1.0]

    def watch(gate: nn.Module, args: Any, output: Any) -> None:
        logits = output[0].detach().float()
        bias = getattr(gate, "e_score_correction_bias", None)
        bias = args[1] if bias is None and len(args) > 1 else bias
        scores = logits.softmax(-1) if bias is None else logits.sigmoid() + bias
        scores = logits if hasattr(gate, "per_expert_scale") else scores  # which gives scores itself
        ranked = scores.reshape(-1, scores.shape[-1]).sort(descending=True)[0]
        active = gate.top_k if hasattr(gate, "top_k") else gate.config.top_k_experts
        margins.append(float((ranked[:, active - 1] - ranked[:, active]).min()))

    for module in model.modules():
        if "Router" in type(module).__name__ and (hasattr(module, "top_k") or hasattr(module, "per_expert_scale")):
            module.register_forward_hook(watch)
    return margins


@torch.no_grad()
def continue_greedily(model: PreTrainedModel, prompts: torch.Tensor) -> tuple[torch.Tensor, float]:
    """What the model continues with, without a cache, and the narrowest margin by which a token won."""
    tokens, narrowest = prompts, float("inf")
    for _ in range(NEW_TOKENS):
        best = model(tokens, use_cache=False).logits[:, -1].topk(2)
        narrowest = min(narrowest, float((best.values[:, 0] - best.values[:, 1]).min()))
        tokens = torch.cat([tokens, best.indices[:, :1]], dim=1)
    return tokens[:, prompts.shape[1] :], narrowest


@torch.no_grad()
def is_sensitive(model: PreTrainedModel, tokens: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether a change of the embeddings in their last bits shows in the logits: a norm of something near 0."""
    table = model.get_input_embeddings().weight
    kept = table.clone()
    table.mul_(1 + 1e-6 * torch.randn(table.shape, generator=torch.Generator().manual_seed(0)))
    change = float((model(tokens, use_cache=False).logits - logits).abs().max())
    table.copy_(kept)
    return change > (5e-5 if "gemma4" in model.config.model_type else 2.5e-4)


def make(name: str) -> PreTrainedModel:
    config = {key: value for key, value in CONFIGS[name].items() if key != "model_type" and value is not None}
    config = AutoConfig.for_model(CONFIGS[name]["model_type"], **config)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()


def write_gradient(model: PreTrainedModel, folder: Path, loss: torch.Tensor) -> None:
    """Gradients under the names of the files: what `save_pretrained` makes of a model that has them as its weights."""
    for parameter in model.parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.data.copy_(grad)
    for buffer_name, buffer in model.named_buffers():
        if is_stored(buffer_name):
            buffer.zero_()
    model.save_pretrained(folder / "gradient")
    tensors = load_file(folder / "gradient" / "model.safetensors")
    shutil.rmtree(folder / "gradient")
    arrays = {key: value.numpy() for key, value in tensors.items()}
    np.savez_compressed(folder / "gradient.npz", loss=np.float32(loss.item()), **arrays)


def write(name: str, seed: int) -> bool:
    """One folder; False if something hung on too small a difference."""
    model, folder = make(name), HERE / name
    draw_weights(model, seed)
    margins = watch_choices(model)
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, model.config.vocab_size, (2, 40), generator=random)
    prompts = tokens[:, :9]
    logits = model(tokens, use_cache=False).logits
    if min(margins) < NARROWEST_EXPERT or is_sensitive(model, tokens, logits):
        return False
    continuation, narrowest = continue_greedily(model, prompts)
    if narrowest < NARROWEST_TOKEN or min(margins) < NARROWEST_EXPERT:
        return False
    print(f"{name}: seed {seed}, narrowest token {narrowest:.4f}, narrowest expert {min(margins):.6f}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {key: value if "correction_bias" in key else value.to(torch.bfloat16) for key, value in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    arrays = {"tokens": tokens, "logits": logits.detach(), "prompts": prompts, "continuation": continuation}
    np.savez_compressed(
        folder / "expected.npz",
        **{k: np.asarray(v, np.float32 if k == "logits" else np.int32) for k, v in arrays.items()},
    )
    logits = model(tokens, use_cache=False).logits
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    write_gradient(model, folder, loss)
    return True


if __name__ == "__main__":
    for name in sys.argv[1:] or CONFIGS:
        next(seed for seed in range(300) if write(name, seed))
