"""Twenty steps of supervised fine-tuning in a plain torch and transformers loop, for tests/learner/test_sft_golden.py.

    python tests/goldens/make_sft.py

Needs torch and transformers beside this package. Writes sft.npz beside itself: padded batches (tokens, and weights
that are 1 where a token is learnt), the loss of every step, and the norm of one matrix at the end. The model is that
of tests/tiny_model.py, whose weights follow from its seed; the settings are in SETTINGS, under our names.
"""

import math
import pathlib
import sys
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.tiny_model import CONFIG, write_tiny_model  # noqa: E402

STEPS, ROWS, LENGTH = 20, 4, 24
SETTINGS = {
    "learning_rate": 3e-3,
    "schedule": "cosine",
    "warmup_updates": 4,
    "final_share": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "epsilon": 1e-8,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
}


def draw_batches() -> tuple[np.ndarray, np.ndarray]:
    """(tokens, weights) [steps, rows, length]: a prompt, then one of three cycles; padding at the end."""
    random = np.random.default_rng(0)
    cycles = random.integers(4, CONFIG["vocab_size"], (3, 4))
    tokens = np.zeros((STEPS, ROWS, LENGTH), np.int16)
    weights = np.zeros((STEPS, ROWS, LENGTH), np.int8)
    for step, row in np.ndindex(STEPS, ROWS):
        prompt = random.integers(4, CONFIG["vocab_size"], random.integers(1, 6))
        said = np.resize(cycles[random.integers(3)], random.integers(3, LENGTH - len(prompt)))
        size = len(prompt) + len(said)
        tokens[step, row, :size] = [*prompt, *said]
        weights[step, row, len(prompt) : size] = 1
    return tokens, weights


def rate(step: int) -> float:
    """The learning rate of a step from 0: linear warm-up, then a cosine to its floor."""
    peak, warm, floor = (SETTINGS[key] for key in ("learning_rate", "warmup_updates", "final_share"))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * (step - warm) / (STEPS - warm))) / 2)


def train(folder: pathlib.Path, tokens: np.ndarray, weights: np.ndarray) -> tuple[list[float], float]:
    """(loss of every step, the norm of the last layer's down projection after the last)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": SETTINGS["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    betas = SETTINGS["beta1"], SETTINGS["beta2"]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=SETTINGS["epsilon"])
    losses = []
    for step in range(STEPS):
        ids, learnt = (torch.tensor(array[step].astype(np.int64)) for array in (tokens, weights))
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=ids.masked_fill(learnt == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS["clip_norm"])
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        losses.append(loss.item())
    return losses, float(model.model.layers[-1].mlp.down_proj.weight.detach().norm())


def main() -> None:
    tokens, weights = draw_batches()
    with tempfile.TemporaryDirectory() as folder:
        losses, norm = train(write_tiny_model(pathlib.Path(folder)), tokens, weights)
    print(np.round(losses, 4))
    np.savez_compressed(HERE / "sft.npz", tokens=tokens, weights=weights, losses=losses, norm=norm)


if __name__ == "__main__":
    main()
