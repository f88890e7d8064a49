"""Writes rope.npz beside this script: rotary tables of every scaling, at four times the original length.

usage: python tests/goldens/make_rope.py       (seconds; no network)
needs: torch, transformers 5. Written with transformers 5.24, torch 2.13 on CPU, float32.

For each NAME: `NAME/config`, the keys of a config.json as text; `NAME/positions` int32 [T]; `NAME/cos` and `NAME/sin`
float32 [T, H/2], of one row with these positions.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

ORIGINAL, HEAD = 32, 16
FACTORS = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [1.0 + 0.7 * i for i in range(8)]}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0},
    "longrope": {**FACTORS, "factor": 4.0},
}


def main() -> None:
    arrays: dict[str, Any] = {}
    for kind, scaling in SCALINGS.items():
        original = {} if kind in ("linear", "dynamic") else {"original_max_position_embeddings": ORIGINAL}
        parameters = {"rope_type": kind, "rope_theta": 500.0, **scaling, **original}
        sizes = {"hidden_size": 2 * HEAD, "num_attention_heads": 2, "head_dim": HEAD}
        config = LlamaConfig(max_position_embeddings=ORIGINAL, rope_parameters=parameters, **sizes)
        rotary = LlamaRotaryEmbedding(config)
        for length in (ORIGINAL // 2, 4 * ORIGINAL):
            name, positions = f"{kind}_{length}", torch.arange(length)
            cos, sin = rotary(torch.zeros(1, length, HEAD), positions[None])
            arrays[f"{name}/config"] = json.dumps({"max_position_embeddings": ORIGINAL, "rope_parameters": parameters})
            arrays[f"{name}/positions"] = positions.numpy().astype(np.int32)
            arrays[f"{name}/cos"], arrays[f"{name}/sin"] = (x[0, :, : HEAD // 2].numpy() for x in (cos, sin))
    np.savez_compressed(Path(__file__).with_name("rope.npz"), **arrays)


if __name__ == "__main__":
    main()
