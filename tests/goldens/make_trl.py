"""One step of TRL's DPO and reward-model trainers on given batches, for tests/learner/test_trl_goldens.py.

    python tests/goldens/make_trl.py SMOLLM2

Needs torch, transformers and trl (1.16) in an environment of their own, beside this package's tests; SMOLLM2 is a
Hugging Face folder of SmolLM2-135M-Instruct (`python -m r1jax.convert models/SmolLM2-135M-Instruct.Q4_1.gguf SMOLLM2`).
Writes trl.npz beside itself: per model and loss the loss of the batch and the norm of its gradient; the log-probs and
scores that go into it; token ids, margins, reference log-probs and the weights of the scores. The tiny model is that of
tests/tiny_model.py.
"""

import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.tiny_model import CONFIG, write_tiny_model  # noqa: E402

PAIRS = 4
BETA = 0.1
# Name -> settings of TRL's trainer; its label_smoothing is used by other losses than "sigmoid" alone.
LOSSES: dict[str, dict[str, Any]] = {
    "dpo": {"loss_type": ["sigmoid"]},
    "ipo": {"loss_type": ["ipo"]},
    "normalized": {"loss_type": ["sigmoid_norm"]},
}
CENTER = 0.01
TEXTS = (
    ("What is two plus two?", "It is four.", "It is a number, and numbers are what people count with."),
    ("Name a colour of the sky.", "Blue, when it is clear.", "Seventeen."),
    ("Is water wet?", "Yes.", "No, and it never was."),
    ("Say good night.", "Good night, sleep well!", "I will not."),
)


def draw_pairs(vocabulary: int) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) of random ids above the special ones."""
    random = np.random.default_rng(0)
    draw = lambda most: random.integers(4, vocabulary, random.integers(1, most)).tolist()
    return [(draw(9), draw(12), draw(12)) for _ in range(PAIRS)]


def flatten(pairs: list[tuple[list[int], list[int], list[int]]]) -> dict[str, np.ndarray]:
    """Ids of all parts one after the other, and their lengths."""
    parts = [part for pair in pairs for part in pair]
    return {"ids": np.concatenate([np.int32(part) for part in parts]), "sizes": np.int16([len(p) for p in parts])}


def measure_norm(model: Any) -> float:
    """The norm of all gradients, which are then cleared."""
    total = sum(float((p.grad.double() ** 2).sum()) for p in model.parameters() if p.grad is not None)
    model.zero_grad(set_to_none=True)
    return float(np.sqrt(total))


def compare(folder: pathlib.Path, tokenizer: Any, pairs: list, losses: list[str]) -> dict[str, np.ndarray]:
    """The figures of one model."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    found: dict[str, Any] = flatten(pairs)
    words = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    shared = {"output_dir": tempfile.mkdtemp(), "report_to": [], "use_cpu": True, "bf16": False, "max_length": None}
    shared |= {"gradient_checkpointing": False}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    random = np.random.default_rng(1)
    examples = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in pairs]
    for name in losses:
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(beta=BETA, **LOSSES[name], **shared),
            train_dataset=words,
            processing_class=tokenizer,
        )
        trainer.model.eval()
        trainer.precompute_ref_logps = True
        inputs = trainer.data_collator(examples)
        if "reference" not in found:
            with torch.no_grad():
                labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
                plain = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
                picked = torch.log_softmax(plain.float(), -1).gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
                logps = (picked * (labels[:, 1:] != -100)).sum(-1).numpy().reshape(2, PAIRS).T
            found["logps"] = logps
            found["reference"] = (logps + random.normal(0, 4, logps.shape)).astype(np.float32)
        chosen, rejected = torch.tensor(found["reference"]).T
        loss = trainer.compute_loss(model, {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected})
        loss.backward()
        found[f"{name}.loss"], found[f"{name}.norm"] = loss.item(), measure_norm(model)
    del model, trainer
    scored = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    score = random.normal(0, 0.1, scored.config.hidden_size).astype(np.float32)
    margins = random.uniform(0, 1, PAIRS).astype(np.float32)
    with torch.no_grad():
        scored.score.weight.copy_(torch.tensor(score)[None])
    args = RewardConfig(center_rewards_coefficient=CENTER, **shared)
    trainer = RewardTrainer(model=scored, args=args, train_dataset=words, processing_class=tokenizer)
    trainer.model.eval()
    ids = [
        {"chosen_ids": p + c, "rejected_ids": p + r, "margin": float(m)}
        for (p, c, r), m in zip(pairs, margins, strict=True)
    ]
    inputs = trainer.data_collator(ids)
    with torch.no_grad():
        plain = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        found["scores"] = scored(**plain).logits.numpy().reshape(2, PAIRS).T
    loss = trainer.compute_loss(scored, inputs)
    loss.backward()
    found |= {"score": score, "margins": margins, "reward.loss": loss.item(), "reward.norm": measure_norm(scored)}
    return {key: np.asarray(value) for key, value in found.items()}


def main(smollm2: pathlib.Path) -> None:
    """Writes the file."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    with tempfile.TemporaryDirectory() as folder:
        tiny = write_tiny_model(pathlib.Path(folder) / "tiny")
        figures = {"tiny": compare(tiny, tokenizer, draw_pairs(CONFIG["vocab_size"]), list(LOSSES))}
    chat = lambda prompt: [{"role": "user", "content": prompt}]
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    show = lambda prompt: tokenizer.apply_chat_template(chat(prompt), tokenize=False, add_generation_prompt=True)
    end = "<|im_end|>"
    words = [(encode(show(p)), encode(c + end)[:-1] + [1], encode(r + end)[:-1] + [1]) for p, c, r in TEXTS]
    figures["smollm2"] = compare(smollm2, tokenizer, words, ["dpo"])
    arrays = {f"{model}.{key}": value for model, values in figures.items() for key, value in values.items()}
    np.savez_compressed(HERE / "trl.npz", **arrays)
    for key, value in arrays.items():
        print(key, value.shape, value if value.ndim == 0 else "")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
