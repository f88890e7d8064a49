"""The peer's side of tests/bench/greedy_agreement.py: greedy completions by transformers, ten prompts at a time.

usage: python tests/bench/greedy_transformers.py HF_FOLDER PROMPTS.jsonl OUT.jsonl [NEW_TOKENS]   (torch, transformers)
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 10


@torch.no_grad()
def main(folder: str, prompts: str, output: str, new_tokens: str = "96") -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with open(prompts, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    stops = model.generation_config.eos_token_id
    stops = set(stops if isinstance(stops, list) else [stops])
    with open(output, "w", encoding="utf-8") as file:
        for first in range(0, len(rows), BATCH):
            batch = rows[first : first + BATCH]
            texts = [
                tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
                for row in batch
            ]
            fed = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
            found = model.generate(**fed, do_sample=False, max_new_tokens=int(new_tokens))
            for row, ids in zip(batch, found[:, fed.input_ids.shape[1] :].tolist(), strict=True):
                end = next((i + 1 for i, token in enumerate(ids) if token in stops), len(ids))
                file.write(json.dumps({**row, "completion_tokens": [ids[:end]]}) + "\n")
            file.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
