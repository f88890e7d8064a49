"""Writes older/NAME/ beside this script: tiny models as an older release of transformers saves them.

usage: python tests/goldens/make_older.py [NAME ...]          (seconds; no network)
needs: torch, transformers 4, safetensors. Written with transformers 4.57.6, torch 2.13 on CPU, float32 throughout.

config.json, model.safetensors
    as `save_pretrained` writes them, with the keys of that release; random weights of bfloat16 precision
expected.npz
    tokens int32 [2, 40] and the logits float32 [2, 40, V] of one forward pass
"""

import json
import shutil
import sys
from typing import Any

import make_families
import numpy as np
import torch
from make_families import CONFIGS, DELTA, EXPERTS, HERE, LATENT, SMALL, YARN, draw_weights, is_sensitive
from safetensors.torch import load_file, save_file

FOLDER = HERE.with_name("older")
SCALING = {key: value for key, value in YARN.items() if key != "rope_theta"}
OLDER: dict[str, dict[str, Any]] = {
    "gemma3": CONFIGS["gemma3"],
    "gpt_oss": {
        **{key: value for key, value in CONFIGS["gpt_oss"].items() if key != "rope_parameters"},
        "rope_theta": YARN["rope_theta"],
        "rope_scaling": {**SCALING, "truncate": False},
    },
    "phi3": {
        **CONFIGS["phi3"],
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.5, 4.0]},
    },
    "qwen3_moe": {**SMALL, **EXPERTS, "model_type": "qwen3_moe", "num_experts": 8},
    "qwen3_next": {**SMALL, **EXPERTS, **DELTA, "model_type": "qwen3_next"},
    "deepseek_v3": {
        **LATENT,
        "model_type": "deepseek_v3",
        "first_k_dense_replace": 1,
        "n_group": 4,
        "topk_group": 2,
        "rope_scaling": {**SCALING, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
}


def write(name: str, seed: int) -> bool:
    """One folder; False if a rounding of the embeddings shows in the logits, as where a choice hangs on it."""
    CONFIGS[name] = OLDER[name]
    model, folder = make_families.make(name), FOLDER / name
    draw_weights(model, seed)
    tokens = torch.randint(2, model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits
    if is_sensitive(model, tokens, logits):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tensors = load_file(folder / "model.safetensors")
    tensors = {key: value if "correction_bias" in key else value.to(torch.bfloat16) for key, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    np.savez_compressed(folder / "expected.npz", tokens=tokens.numpy().astype(np.int32), logits=logits.numpy())
    print(f"{name}: seed {seed}", flush=True)
    return True


if __name__ == "__main__":
    for name in sys.argv[1:] or OLDER:
        next(seed for seed in range(100) if write(name, seed))
