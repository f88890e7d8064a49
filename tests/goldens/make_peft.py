"""Writes peft/NAME/ beside this script: tiny adapters as the library peft saves them, and their logits on the base.

usage: python tests/goldens/make_peft.py                 (seconds; no network) writes the goldens
       python tests/goldens/make_peft.py FOLDER          prints the largest difference between FOLDER/logits.npy and
                                                         the logits of the adapters in FOLDER, loaded by peft
needs: torch, transformers, peft. Written with peft 0.21, transformers 5.24, torch 2.13 on CPU, float32 throughout.

NAME: plain (all maps of attention and MLP), patterns (rank-stabilized, ranks and alphas by module, lm_head trained
whole), embedding (adapters of the embedding too). The base of `plain` is dense/qwen2_tied, else dense/llama_scaled.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[str, LoraConfig]] = {
    "plain": (
        "dense/qwen2_tied",
        LoraConfig(r=4, lora_alpha=12, target_modules=ATTENTION + MLP, task_type="CAUSAL_LM"),
    ),
    "patterns": (
        "dense/llama_scaled",
        LoraConfig(
            r=3,
            lora_alpha=7,
            use_rslora=True,
            target_modules=["q_proj", "v_proj", "down_proj"],
            rank_pattern={"down_proj": 5, "layers.0.self_attn.v_proj": 2},
            alpha_pattern={"v_proj": 11},
            modules_to_save=["lm_head"],
            task_type="CAUSAL_LM",
        ),
    ),
    "embedding": (
        "dense/llama_scaled",
        LoraConfig(r=2, lora_alpha=3, target_modules=["embed_tokens", "o_proj"], task_type="CAUSAL_LM"),
    ),
}


def load_base(folder: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def compute_logits(model: torch.nn.Module, vocab_size: int) -> np.ndarray:
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, vocab_size, (2, 9)))
    with torch.no_grad():
        return model(tokens).logits.numpy()


def make(name: str) -> None:
    base_name, config = CASES[name]
    folder = HERE / "peft" / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    base = load_base(str(HERE / base_name))
    vocab_size = base.config.vocab_size
    plain = compute_logits(base, vocab_size)
    model = get_peft_model(base, config)
    for parameter in model.parameters():  # B is zero at first, and whole modules are copies
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.1)
    logits = compute_logits(model.eval(), vocab_size)
    assert np.abs(logits - plain).max() > 0.1, "the adapters must matter"
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    saved = json.loads((folder / "adapter_config.json").read_text())
    saved["base_model_name_or_path"] = f"tests/goldens/{base_name}"
    (folder / "adapter_config.json").write_text(json.dumps(saved, indent=2) + "\n")
    np.save(folder / "logits.npy", logits)
    print(name, sum(file.stat().st_size for file in folder.iterdir()), "bytes")


def compare(folder: str) -> None:
    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    base = load_base(config["base_model_name_or_path"])
    vocab_size = base.config.vocab_size
    found = compute_logits(PeftModel.from_pretrained(base, folder).eval(), vocab_size)
    print(float(np.abs(found - np.load(Path(folder) / "logits.npy")).max()))


if __name__ == "__main__":
    if sys.argv[1:]:
        compare(sys.argv[1])
    else:
        for case in CASES:
            make(case)
