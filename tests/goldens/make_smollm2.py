"""Writes weights.json, logits.npz and greedy.json beside this script: what transformers makes of SmolLM2-135M-Instruct.

usage: python tests/goldens/make_smollm2.py models/SmolLM2-135M-Instruct.Q4_1.gguf       (2 cores: a few minutes)
needs: torch, transformers 5, gguf (no network). Written with transformers 5.23, torch 2.13 on CPU, float32 throughout.

weights.json  {NAME: {"shape": [...], "sha256": of the float32 bytes, C order}} of all tensors of the state dict, with
              Hugging Face's names: dequantized, queries and keys in Hugging Face's rotary order. `lm_head` is tied.
logits.npz    for i in 0..N-1 (N = `count`): `tokens_i` int32 [T]; one forward pass over them without padding gives
              `logits_i` float32 [T, C], the logits at the vocabulary columns `columns` int32 [C];
              `logsumexp_i` float32 [T] and `argmax_i` int32 [T], both over the whole vocabulary.
greedy.json   [{"text": prompt, "tokens": its ids, "continuation": 48 ids, "margin": smallest distance between the best
                and the second logit on the way}]. Prompts are encoded without special tokens added. Stop ids do NOT
              stop these continuations: compare with stop ids switched off, or up to the first one. The prompts are ones
              whose margins are 0.01 at least, far above what another order of float32 sums can move.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

HERE = Path(__file__).parent
NEW_TOKENS = 48
COLUMNS = 128
NARROWEST = 0.01
QUESTIONS = [
    "What is 25 + 17? Think step by step.",
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May. How many in all?",
    "How do plants make food?",
    "What is the capital of France?",
    "Explain why the sky is blue.",
]
TEXTS = [
    "Water boils at 100 degrees Celsius. At high altitude,",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "Question: What is 3 + 4?\nReply: <think> 3 + 4 = 7 </think> <answer> 7 </answer>\n\n"
    "Question: What is 12 + 5?\nReply:",
    "A conversation between User and Assistant. User: What is 25 + 17? Assistant:",
    "1, 2, 3, 5, 8, 13, 21,",
]
LONG = "In the year {} the village had {} houses, and every one of them kept a lamp in its window. "


def write_weights(model: PreTrainedModel) -> None:
    tensors = {name: value.float().contiguous().numpy() for name, value in model.state_dict().items()}
    sums = {
        name: {"shape": list(value.shape), "sha256": hashlib.sha256(value.tobytes()).hexdigest()}
        for name, value in tensors.items()
        if name != "lm_head.weight"
    }
    (HERE / "weights.json").write_text(json.dumps(sums, indent=0) + "\n")


def write_logits(model: PreTrainedModel, prompts: list[list[int]], vocabulary: int) -> None:
    columns = np.sort(np.random.default_rng(0).choice(vocabulary, COLUMNS, replace=False)).astype(np.int32)
    arrays = {"count": np.int32(len(prompts)), "columns": columns}
    for i, tokens in enumerate(prompts):
        logits = model(torch.tensor([tokens])).logits[0]
        arrays[f"tokens_{i}"] = np.array(tokens, np.int32)
        arrays[f"logits_{i}"] = logits[:, torch.tensor(columns)].numpy()
        arrays[f"logsumexp_{i}"] = logits.double().logsumexp(-1).float().numpy()
        arrays[f"argmax_{i}"] = logits.argmax(-1).int().numpy()
    np.savez_compressed(HERE / "logits.npz", **arrays)


def continue_greedily(model: PreTrainedModel, tokens: list[int]) -> tuple[list[int], float]:
    """The likeliest next token, NEW_TOKENS times, and the narrowest margin by which one won."""
    output, margins, continuation = model(torch.tensor([tokens]), use_cache=True), [], []
    while True:
        best = output.logits[0, -1].topk(2)
        continuation.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        if len(continuation) == NEW_TOKENS:
            return continuation, min(margins)
        step = torch.tensor([continuation[-1:]])
        output = model(step, past_key_values=output.past_key_values, use_cache=True)


@torch.no_grad()
def main(path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    write_weights(model)

    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats] + TEXTS
    rows = [(text, tokenizer.encode(text, add_special_tokens=False)) for text in texts]

    long = "".join(LONG.format(1700 + 7 * i, 100 + i) for i in range(16))
    extra = [tokenizer.encode(text, add_special_tokens=False) for text in (long, "Hi")]
    write_logits(model, [rows[0][1], rows[6][1], rows[7][1], *extra], tokenizer.vocab_size)

    greedy = []
    for text, tokens in rows:
        continuation, margin = continue_greedily(model, tokens)
        if margin < NARROWEST:
            raise SystemExit(f"{text!r} is decided by {margin}: another computer may decide otherwise; choose another")
        greedy.append({"text": text, "tokens": tokens, "continuation": continuation, "margin": round(margin, 4)})
        print(f"{margin:.4f}", repr(tokenizer.decode(continuation)))
    (HERE / "greedy.json").write_text(json.dumps(greedy) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
