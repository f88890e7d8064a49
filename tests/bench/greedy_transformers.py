"""The peer's side of tests/bench/greedy_agreement.py: greedy completions by transformers, one prompt at a time.

usage: python tests/bench/greedy_transformers.py HF_FOLDER PROMPTS.jsonl OUT.jsonl [NEW_TOKENS]   (torch, transformers)
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def main(folder: str, prompts: str, output: str, new_tokens: str = "96") -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with open(prompts, encoding="utf-8") as rows, open(output, "w", encoding="utf-8") as file:
        for row in map(json.loads, rows):
            text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            mask = torch.ones_like(ids)
            found = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=int(new_tokens))
            file.write(json.dumps({**row, "completion_tokens": [found[0, ids.shape[1] :].tolist()]}) + "\n")
            file.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
