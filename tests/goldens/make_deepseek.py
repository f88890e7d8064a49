"""Writes deepseek/NAME/ beside this script: tiny DeepSeek models as the hub has them, and what transformers computes.

usage: python tests/goldens/make_deepseek.py       (seconds; no network)
needs: torch, transformers 5, safetensors. Written with transformers 5.23, torch 2.13 on CPU, float32 throughout.

config.json, model.safetensors
    random weights of bfloat16 precision, one tensor an expert; of `v3_latent` a prediction depth at layer num_layers
expected.npz
    tokens int32 [3, 64] and the logits float32 [3, 64, V] of one forward pass; prompts int32 [3, 12] and what
    `generate` continues them with greedily, continuation int32 [3, 40]
    mtp_logits float32 [3, 63, V] (`v3_latent`): of the module `Depth` below, at the positions that have a next token
gradient.npz (`v3_latent`)
    `loss`, the mean of -log p of tokens[:, 1:], and its gradient by each tensor's name

NAME: v3_latent (latent queries, groups, YaRN with both mscales, prediction depth), v3_direct (queries without a latent,
one group, prediction depth announced but absent), v2_lite (V2-Lite's shape), v2_grouped (V2's: groups by best expert).

The seeds are ones with which no choice of an expert and no greedy token hangs on a small difference, which another
order of float32 sums could turn.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

HERE = Path(__file__).parent / "deepseek"
NEW_TOKENS = 40
NARROWEST_TOKEN, NARROWEST_EXPERT = 0.01, 2e-5
YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 4, "original_max_position_embeddings": 32, "type": "yarn"}
COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 1,
}
V2 = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "v3_latent": {
        **COMMON,
        **V3,
        "q_lora_rank": 12,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
    },
    "v3_direct": {
        **COMMON,
        **V3,
        "q_lora_rank": None,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 3,
        "routed_scaling_factor": 1.5,
        "rope_scaling": None,
        "rope_theta": 500.0,
    },
    "v2_lite": {
        **COMMON,
        **V2,
        "q_lora_rank": None,
        "n_shared_experts": 2,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "num_experts_per_tok": 3,
        "routed_scaling_factor": 1.0,
        "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "v2_grouped": {
        **COMMON,
        **V2,
        "q_lora_rank": 12,
        "n_shared_experts": 2,
        "n_group": 4,
        "topk_group": 2,
        "topk_method": "group_limited_greedy",
        "routed_scaling_factor": 4.0,
        "rope_scaling": None,
    },
}


def mlp_shapes(width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {"gate_proj.weight": (hidden, width), "up_proj.weight": (hidden, width), "down_proj.weight": (width, hidden)}


def layer_shapes(config: dict[str, Any], dense: bool) -> dict[str, tuple[int, ...]]:
    """Tensors of one layer in the hub's names."""
    width, heads, latent = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    plain, rotary, value = (config[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.kv_a_proj_with_mqa.weight": (latent + rotary, width),
        "self_attn.kv_a_layernorm.weight": (latent,),
        "self_attn.kv_b_proj.weight": (heads * (plain + value), latent),
        "self_attn.o_proj.weight": (width, heads * value),
    }
    if rank := config["q_lora_rank"]:
        shapes["self_attn.q_a_proj.weight"] = (rank, width)
        shapes["self_attn.q_a_layernorm.weight"] = (rank,)
    shapes[f"self_attn.{'q_b_proj' if rank else 'q_proj'}.weight"] = (heads * (plain + rotary), rank or width)
    if dense:
        return shapes | {f"mlp.{k}": v for k, v in mlp_shapes(width, config["intermediate_size"]).items()}
    hidden, experts = config["moe_intermediate_size"], config["n_routed_experts"]
    shapes["mlp.gate.weight"] = (experts, width)
    if config["model_type"] == "deepseek_v3":
        shapes["mlp.gate.e_score_correction_bias"] = (experts,)
    for expert in range(experts):
        shapes |= {f"mlp.experts.{expert}.{k}": v for k, v in mlp_shapes(width, hidden).items()}
    shared = mlp_shapes(width, hidden * config["n_shared_experts"])
    return shapes | {f"mlp.shared_experts.{k}": v for k, v in shared.items()}


def draw_weights(config: dict[str, Any], depths: int, seed: int) -> dict[str, torch.Tensor]:
    """Random tensors under the hub's names, all values of bfloat16 precision."""
    width, vocab, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    shapes = {
        "model.embed_tokens.weight": (vocab, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (vocab, width),
    }
    for layer in range(layers + depths):
        dense = layer < config["first_k_dense_replace"]
        shapes |= {f"model.layers.{layer}.{k}": v for k, v in layer_shapes(config, dense).items()}
    for layer in range(layers, layers + depths):
        norms = {name: (width,) for name in ("enorm.weight", "hnorm.weight", "shared_head.norm.weight")}
        shapes |= {f"model.layers.{layer}.{k}": v for k, v in {**norms, "eh_proj.weight": (width, 2 * width)}.items()}
    random, tensors = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        if name.endswith("bias"):
            tensor = 0.1 * torch.randn(shape, generator=random)
        elif len(shape) == 1:
            tensor = 0.5 + torch.rand(shape, generator=random)
        else:
            tensor = torch.randn(shape, generator=random) * (1.0 if "embed" in name else 1.5 / shape[1] ** 0.5)
        tensors[name] = tensor.to(torch.float32 if name.endswith("bias") else torch.bfloat16)
    for layer in range(layers, layers + depths):
        tensors[f"model.layers.{layer}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors[f"model.layers.{layer}.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    return tensors


class Depth(nn.Module):
    """A prediction depth from its formula: norm(block(eh_proj([enorm(embedding of t_(i+1)); hnorm(h_i)])))."""

    def __init__(self, model: PreTrainedModel, tensors: dict[str, torch.Tensor]):
        super().__init__()
        config, layer = model.config, model.config.num_hidden_layers
        own = {k.removeprefix(f"model.layers.{layer}."): v.float() for k, v in tensors.items()}
        self.model, self.own = model, own
        self.block = v3.DeepseekV3DecoderLayer(config, layer)
        experts = range(config.n_routed_experts)
        gather = lambda *parts: torch.stack(
            [torch.cat([own.pop(f"mlp.experts.{e}.{p}.weight") for p in parts]) for e in experts]
        )
        fused = {
            "mlp.experts.gate_up_proj": gather("gate_proj", "up_proj"),
            "mlp.experts.down_proj": gather("down_proj"),
        }
        self.block.load_state_dict(
            {name: fused[name] if name in fused else own[name] for name in self.block.state_dict()}
        )

    def normalize(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.model.config.rms_norm_eps).sqrt() * self.own[name]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, T - 1, V] of the token after the next."""
        decoder = self.model.model
        hidden = decoder(tokens).last_hidden_state[:, :-1]
        embedded = decoder.embed_tokens(tokens[:, 1:])
        both = torch.cat([self.normalize(embedded, "enorm.weight"), self.normalize(hidden, "hnorm.weight")], dim=-1)
        x = both @ self.own["eh_proj.weight"].T
        length = x.shape[1]
        positions = torch.arange(length)[None]
        causal = torch.full((length, length), float("-inf")).triu(1)[None, None]
        x = self.block(x, attention_mask=causal, position_embeddings=decoder.rotary_emb(x, positions))
        x = x[0] if isinstance(x, tuple) else x
        return self.normalize(x, "shared_head.norm.weight") @ self.own["shared_head.head.weight"].T


def watch_choices(model: PreTrainedModel) -> list[float]:
    """Grows, as the model runs, by how far the last chosen expert (or group) of any token lay before the next."""
    margins: list[float] = []

    def watch(gate: nn.Module, _: Any, output: tuple[torch.Tensor, ...]) -> None:
        sigmoid = hasattr(gate, "e_score_correction_bias")
        logits = output[0].detach()
        scores = logits.sigmoid() + gate.e_score_correction_bias if sigmoid else logits.softmax(-1)
        if (gate.num_group or 1) > 1:
            grouped = scores.view(len(scores), gate.num_group, -1)
            best = grouped.topk(2)[0].sum(-1) if sigmoid else grouped.max(-1).values
            ranked = best.sort(descending=True)[0]
            margins.append(float((ranked[:, gate.topk_group - 1] - ranked[:, gate.topk_group]).min()))
            kept = best >= ranked[:, gate.topk_group - 1, None]
            scores = grouped.masked_fill(~kept[..., None], -1.0).flatten(1)
        ranked = scores.sort(descending=True)[0]
        margins.append(float((ranked[:, gate.top_k - 1] - ranked[:, gate.top_k]).min()))

    for module in model.modules():
        if type(module).__name__.endswith("TopkRouter"):
            module.register_forward_hook(watch)
    return margins


@torch.no_grad()
def continue_greedily(model: PreTrainedModel, prompts: torch.Tensor) -> tuple[torch.Tensor, float]:
    """What `generate` continues with, and the narrowest margin by which a token won."""
    output = model.generate(
        prompts, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=-1, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    best = torch.stack(output.logits).topk(2).values
    return output.sequences[:, prompts.shape[1] :], float((best[..., 0] - best[..., 1]).min())


def expert_gradients(name: str, grad: torch.Tensor) -> dict[str, np.ndarray]:
    """A gradient under the hub's names, where transformers holds all experts in one tensor."""
    if ".mlp.experts." not in name:
        return {name: grad.numpy()}
    stem, kind = name.rsplit(".", 1)
    parts = (
        dict(zip(("gate_proj", "up_proj"), grad.chunk(2, dim=1), strict=True))
        if kind == "gate_up_proj"
        else {"down_proj": grad}
    )
    return {f"{stem}.{e}.{part}.weight": x[e].numpy() for part, x in parts.items() for e in range(len(grad))}


def write(name: str, seed: int) -> bool:
    """One folder; False if something hung on too small a difference."""
    config, folder, latent = CONFIGS[name], HERE / name, name == "v3_latent"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(draw_weights(config, int(latent), seed), folder / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    margins = watch_choices(model)
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, config["vocab_size"], (3, 64), generator=random)
    prompts = tokens[:, :12]
    logits = model(tokens).logits
    continuation, narrowest = continue_greedily(model, prompts)
    arrays = {"tokens": tokens, "logits": logits.detach(), "prompts": prompts, "continuation": continuation}
    if latent:
        depth = Depth(model, load_file(folder / "model.safetensors"))
        margins.extend(watch_choices(depth.block))
        arrays["mtp_logits"] = depth(tokens).detach()
    if narrowest < NARROWEST_TOKEN or min(margins) < NARROWEST_EXPERT:
        return False
    print(f"{name}: seed {seed}, narrowest token {narrowest:.4f}, narrowest expert {min(margins):.6f}")
    np.savez_compressed(
        folder / "expected.npz",
        **{k: np.asarray(v, np.float32 if "logits" in k else np.int32) for k, v in arrays.items()},
    )
    if latent:
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        gradients = {"loss": np.float32(loss.item())}
        for key, value in model.named_parameters():
            gradients |= expert_gradients(key, value.grad)
        np.savez_compressed(folder / "gradient.npz", **gradients)
    return True


if __name__ == "__main__":
    for name in CONFIGS:
        next(seed for seed in range(200) if write(name, seed))
