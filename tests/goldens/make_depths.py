"""Writes depths/NAME/ beside this script: tiny models with a prediction depth, as the released files hold it.

usage: python tests/goldens/make_depths.py        (seconds; no network)
needs: torch, transformers 5, safetensors. Written with transformers 5.24, torch 2.13 on CPU, float32 throughout.

transformers leaves the depth of these models out. `Depth` below is made of its layers, by the names and shapes of the
released files: fc([norm(embedding of the next token); norm(normalized state)]), a layer with attention, a norm, the
head of the model.

config.json, model.safetensors
    with `mtp.*`; random weights of bfloat16 precision
expected.npz
    tokens int32 [2, 40], logits float32 [2, 40, V], mtp_logits float32 [2, 39, V]
"""

import importlib
import json
import shutil

import make_families
import numpy as np
import torch
from make_families import HERE, draw_weights
from safetensors.torch import load_file, save_file
from torch import nn

FOLDER = HERE.with_name("depths")
NAMES = {"qwen3_next": "Qwen3Next", "qwen3_5": "Qwen3_5"}


class Depth(nn.Module):
    """The depth of a model."""

    def __init__(self, model: nn.Module, module: str, prefix: str):
        super().__init__()
        parts = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
        norm, config = getattr(parts, f"{prefix}RMSNorm"), model.config
        width, epsilon = config.hidden_size, config.rms_norm_eps
        self.config = config
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden = norm(width, eps=epsilon), norm(width, eps=epsilon)
        self.fc = nn.Linear(2 * width, width, bias=False)
        attending = config.layer_types.index("full_attention")
        self.layers = nn.ModuleList([getattr(parts, f"{prefix}DecoderLayer")(config, attending)])
        self.norm = norm(width, eps=epsilon)

    def forward(self, model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        states = model.model(tokens, use_cache=False).last_hidden_state[:, :-1]
        embedded = model.model.embed_tokens(tokens[:, 1:])
        both = torch.cat([self.pre_fc_norm_embedding(embedded), self.pre_fc_norm_hidden(states)], dim=-1)
        length = both.shape[1]
        positions = torch.arange(length)[None].expand(len(tokens), -1)
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
        x = self.fc(both)
        turns = model.model.rotary_emb(x, positions)
        x = self.layers[0](x, position_embeddings=turns, attention_mask=mask, position_ids=positions)
        return model.lm_head(self.norm(x[0] if isinstance(x, tuple) else x))


@torch.no_grad()
def write(name: str) -> None:
    model, folder = make_families.make(name), FOLDER / name
    depth = Depth(model, name, NAMES[name]).eval()
    draw_weights(model, 0)
    draw_weights(depth, 1)  # type: ignore[arg-type]
    tokens = torch.randint(2, model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    arrays = {"logits": model(tokens, use_cache=False).logits, "mtp_logits": depth(model, tokens)}
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tensors = load_file(folder / "model.safetensors")
    for key, value in depth.state_dict().items():
        if ".experts.gate_up_proj" in key:  # one tensor a matrix, as in the released files
            for expert, both in enumerate(value):
                for part, matrix in zip(("gate", "up"), both.chunk(2), strict=True):
                    tensors[f"mtp.{key.replace('gate_up_proj', f'{expert}.{part}_proj.weight')}"] = matrix
        elif ".experts.down_proj" in key:
            for expert, matrix in enumerate(value):
                tensors[f"mtp.{key.replace('down_proj', f'{expert}.down_proj.weight')}"] = matrix
        else:
            tensors[f"mtp.{key}"] = value
    tensors = {key: value.to(torch.bfloat16).contiguous() for key, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16", "mtp_num_hidden_layers": 1}
    if name == "qwen3_next":
        del config["mtp_num_hidden_layers"]  # the released file has no such key
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    np.savez_compressed(
        folder / "expected.npz",
        tokens=tokens.numpy().astype(np.int32),
        **{key: value.numpy() for key, value in arrays.items()},
    )
    print(name, flush=True)


if __name__ == "__main__":
    for name in NAMES:
        write(name)
