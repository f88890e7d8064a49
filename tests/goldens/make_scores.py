"""Reward models of transformers, and the scores that it gives, for tests/weights/test_score_folders.py.

    python tests/goldens/make_scores.py                       writes scores/FAMILY: folders with scores.json
    python tests/goldens/make_scores.py FOLDER ROWS.json      prints the scores that transformers gives to rows of ids

Needs torch and transformers in an environment of their own. The second form opens a folder that `python -m
r1jax.convert` made of a reward model; a row is scored at its last token.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_labels": 1,
    "initializer_range": 0.2,
}
FAMILIES = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config}


def rate(model: torch.nn.Module, rows: list[list[int]]) -> list[float]:
    """The score of each row, one at a time."""
    with torch.no_grad():
        return [float(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]


def write() -> None:
    """A folder of each family."""
    random = np.random.default_rng(0)
    rows = [random.integers(3, SIZES["vocab_size"], length).tolist() for length in (3, 9, 17, 30)]
    for name, make in FAMILIES.items():
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(make(**SIZES)).float().eval()
        with torch.no_grad():
            model.score.weight.normal_(0, 0.5)
        folder = HERE / "scores" / name
        model.save_pretrained(folder)
        (folder / "scores.json").write_text(json.dumps({"rows": rows, "scores": rate(model, rows)}) + "\n")
        print(name, rate(model, rows))


def show(folder: str, file: str) -> None:
    """Scores of rows by a folder."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    print(json.dumps(rate(model, json.loads(pathlib.Path(file).read_text()))))


if __name__ == "__main__":
    show(*sys.argv[1:]) if len(sys.argv) > 1 else write()
