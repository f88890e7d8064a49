"""Writes qwen3_moe/NAME/ beside this script: tiny Qwen3 models with experts as the hub has them, and what transformers
computes.

usage: python tests/goldens/make_qwen3_moe.py       (seconds; no network)
needs: torch, transformers 5, safetensors. Written with transformers 5.24, torch 2.13 on CPU, float32 throughout.

The files are those that make_dense.py describes, one tensor an expert; gradient.npz is of `tied`.

NAME: tied (all layers with experts, weights normalized, heads wider than width over heads), mixed (untied, layers with
and without experts, weights as they are, the newer `rope_parameters` with YaRN).

The seeds are ones with which no choice of an expert and no greedy token hangs on a small difference, which another
order of float32 sums could turn.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_dense import COMMON, NARROWEST_TOKEN, YARN, continue_greedily
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

HERE = Path(__file__).parent / "qwen3_moe"
NARROWEST_EXPERT = 2e-5
MOE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "use_sliding_window": False,
    "attention_bias": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "tied": {
        **COMMON,
        **MOE,
        "tie_word_embeddings": True,
        "head_dim": 12,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "rope_theta": 1000.0,
    },
    "mixed": {
        **{key: value for key, value in COMMON.items() if key != "rope_theta"},
        **MOE,
        "num_hidden_layers": 5,
        "num_experts_per_tok": 3,
        "head_dim": 8,
        "norm_topk_prob": False,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "rope_parameters": {**YARN, "rope_type": "yarn", "rope_theta": 10000.0},
    },
}


def routes(config: dict[str, Any], layer: int) -> bool:
    return layer not in config["mlp_only_layers"] and (layer + 1) % config["decoder_sparse_step"] == 0


def draw_weights(config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Random tensors under the hub's names, all values of bfloat16 precision."""
    width, head, vocab = config["hidden_size"], config["head_dim"], config["vocab_size"]
    heads, kv_heads = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, width)

    def add_mlp(stem: str, hidden: int) -> None:
        shapes.update({f"{stem}.{name}_proj.weight": (hidden, width) for name in ("gate", "up")})
        shapes[f"{stem}.down_proj.weight"] = (width, hidden)

    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        for name, rows in {"q": heads, "k": kv_heads, "v": kv_heads}.items():
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, width)
        shapes |= {f"{layer}.self_attn.{name}_norm.weight": (head,) for name in "qk"}
        shapes[f"{layer}.self_attn.o_proj.weight"] = (width, heads)
        shapes |= {f"{layer}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
        if not routes(config, number):
            add_mlp(f"{layer}.mlp", config["intermediate_size"])
            continue
        shapes[f"{layer}.mlp.gate.weight"] = (config["num_experts"], width)
        for expert in range(config["num_experts"]):
            add_mlp(f"{layer}.mlp.experts.{expert}", config["moe_intermediate_size"])
    random, tensors = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            tensor = 0.5 + torch.rand(shape, generator=random)
        else:
            tensor = torch.randn(shape, generator=random) * (1.0 if "embed" in name else 1.5 / shape[1] ** 0.5)
        tensors[name] = tensor.to(torch.bfloat16)
    return tensors


def watch_choices(model: PreTrainedModel) -> list[float]:
    """Grows, as the model runs, by how far the last chosen expert of any token lay before the next."""
    margins: list[float] = []

    def watch(gate: nn.Module, _: Any, output: tuple[torch.Tensor, ...]) -> None:
        ranked = output[0].detach().softmax(-1).sort(descending=True)[0]
        margins.append(float((ranked[:, gate.top_k - 1] - ranked[:, gate.top_k]).min()))

    for module in model.modules():
        if type(module).__name__.endswith("TopKRouter"):
            module.register_forward_hook(watch)
    return margins


def split_experts(name: str, grad: torch.Tensor) -> dict[str, np.ndarray]:
    """A gradient under the hub's names, where transformers holds all experts in one tensor."""
    if ".mlp.experts." not in name:
        return {name: grad.numpy()}
    stem, kind = name.rsplit(".", 1)
    named = zip(("gate_proj", "up_proj"), grad.chunk(2, dim=1), strict=True)
    parts = dict(named) if kind == "gate_up_proj" else {"down_proj": grad}
    return {f"{stem}.{e}.{part}.weight": x[e].numpy() for part, x in parts.items() for e in range(len(grad))}


def write(name: str, seed: int) -> bool:
    """One folder; False if something hung on too small a difference."""
    config, folder = CONFIGS[name], HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(draw_weights(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    margins = watch_choices(model)
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, config["vocab_size"], (3, 64), generator=random)
    prompts = tokens[:, :12]
    logits = model(tokens).logits
    continuation, narrowest = continue_greedily(model, prompts)
    if narrowest < NARROWEST_TOKEN or min(margins) < NARROWEST_EXPERT:
        return False
    print(f"{name}: seed {seed}, narrowest token {narrowest:.4f}, narrowest expert {min(margins):.6f}")
    arrays = {"tokens": tokens, "logits": logits.detach(), "prompts": prompts, "continuation": continuation}
    np.savez_compressed(
        folder / "expected.npz",
        **{k: np.asarray(v, np.float32 if k == "logits" else np.int32) for k, v in arrays.items()},
    )
    if name == "tied":
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        gradients: dict[str, Any] = {"loss": np.float32(loss.item())}
        for key, value in model.named_parameters():
            gradients |= split_experts(key, value.grad)
        np.savez_compressed(folder / "gradient.npz", **gradients)
    return True


if __name__ == "__main__":
    for name in CONFIGS:
        next(seed for seed in range(200) if write(name, seed))
