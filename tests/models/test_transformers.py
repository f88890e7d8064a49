"""Exported folders load in transformers and compute there what they compute here.

Needs an interpreter that has torch and transformers 5, named by R1JAX_TRANSFORMERS_PYTHON:
R1JAX_TRANSFORMERS_PYTHON=/path/to/python pytest -m slow tests/models/test_transformers.py
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from r1jax.models.transformer import merge, split
from r1jax.weights import load_pretrained
from r1jax.weights.export import convert, export_model
from tests.models.golden import LOGIT_TOLERANCE
from tests.tiny_model import write_tiny_model

PYTHON = os.environ.get("R1JAX_TRANSFORMERS_PYTHON", "")
GOLDENS = Path(__file__).parents[1] / "goldens"
MODELS = sorted(path.parent for path in GOLDENS.glob("*/*/model.safetensors"))
MODELS = [folder for folder in MODELS if "ForCausalLM" in (folder / "config.json").read_text()]  # no reward models
MESSAGES = [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "5."}]

LOAD = """
import json, sys
import numpy as np, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
tokens = torch.tensor(json.loads(sys.argv[1]))
for folder in sys.argv[3:]:
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"], report
    with torch.no_grad():
        np.save(f"{folder}/logits.npy", model.eval()(tokens).logits.numpy())
folder = sys.argv[3]
tokenizer = AutoTokenizer.from_pretrained(folder)
text = tokenizer.apply_chat_template(json.loads(sys.argv[2]), tokenize=False)
print(json.dumps({"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"],
    "eos": GenerationConfig.from_pretrained(folder).eos_token_id}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="R1JAX_TRANSFORMERS_PYTHON names no interpreter with torch and transformers")
def test_transformers_loads_what_is_exported(tmp_path: Path) -> None:
    tiny = write_tiny_model(tmp_path / "tiny")
    model, tokenizer = load_pretrained(tiny)
    assert tokenizer is not None and tokenizer.chat_template is not None
    folders: dict[Path, Any] = {tmp_path / "out": model}
    export_model(model.config, split(model)[1], tokenizer, tmp_path / "out", shard_bytes=100_000)
    for source in MODELS:
        loaded, _ = load_pretrained(source, scan_layers=True)
        exported, converted = (tmp_path / f"{kind}_{source.parent.name}_{source.name}" for kind in ("out", "convert"))
        export_model(loaded.config, split(loaded)[1], None, exported, shard_bytes=40_000)
        convert(source, converted)
        folders |= {exported: loaded, converted: loaded}
    shutil.rmtree(tiny)
    tokens = np.random.default_rng(0).integers(2, 64, (3, 64)).astype(np.int32)
    arguments = [json.dumps(tokens.tolist()), json.dumps(MESSAGES), *map(str, folders)]
    done = subprocess.run([PYTHON, "-c", LOAD, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    wrong: dict[str, float] = {}
    for folder, model in folders.items():
        graph, params = split(model)
        found = jax.jit(lambda params, graph=graph: merge(graph, params)(tokens))(params)
        if (difference := np.abs(np.load(folder / "logits.npy") - found).max()) > LOGIT_TOLERANCE:
            wrong[folder.name] = difference
    assert not wrong
    said = json.loads(done.stdout.splitlines()[-1])
    assert tokenizer.encode(said["text"]) == said["ids"] and list(tokenizer.eos_ids) == said["eos"]
    assert said["text"].startswith("<|im_start|>user\n")
