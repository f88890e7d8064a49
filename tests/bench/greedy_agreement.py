"""How many greedy tokens of real word problems are those of transformers, token for token.

    python tests/bench/greedy_agreement.py prepare PROMPTS.jsonl GSM8K_TEST.jsonl SVAMP.jsonl     (50 problems of each)
    python tests/bench/greedy_transformers.py HF_FOLDER PROMPTS.jsonl THEIRS.jsonl               (torch, transformers)
    python -m r1jax.generate --model=HF_FOLDER --prompts=PROMPTS.jsonl --output=OURS.jsonl --temperature=0 \
        --max_new_tokens=96
    python tests/bench/greedy_agreement.py compare THEIRS.jsonl OURS.jsonl

HF_FOLDER is a model with its tokenizer and chat template as transformers loads it. Behind the first difference of a
completion no token counts as the same, so the figure is the hardest one. Exit code 1 below 99%.
"""

import json
import sys

from r1jax.eval.benchmarks import load_benchmark

PROBLEMS = 50
WANTED = 0.99


def prepare(output: str, gsm8k: str, svamp: str) -> None:
    """Writes the prompts, in the wording of the benchmarks."""
    with open(output, "w", encoding="utf-8") as file:
        for spec in (f"gsm8k={gsm8k}", f"svamp={svamp}"):
            for problem in load_benchmark(spec, limit=PROBLEMS)[1]:
                file.write(json.dumps({"prompt": problem.prompt, "solution": problem.gold}) + "\n")


def compare(theirs: str, ours: str) -> int:
    """Prints the share of tokens and of whole completions that are the same."""
    pairs = []
    with open(theirs, encoding="utf-8") as one, open(ours, encoding="utf-8") as other:
        for a, b in zip(map(json.loads, one), map(json.loads, other), strict=True):
            if a["prompt"] != b["prompt"]:
                raise SystemExit("the files belong to different prompts")
            pairs.append((a["completion_tokens"][0], b["completion_tokens"][0]))
    same = total = whole = 0
    for a, b in pairs:
        first = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        same, total, whole = same + first, total + max(len(a), len(b)), whole + (a == b)
    print(f"{same}/{total} tokens the same ({same / total:.2%}), {whole}/{len(pairs)} completions whole")
    return 0 if same / total >= WANTED else 1


if __name__ == "__main__":
    sys.exit({"prepare": prepare, "compare": compare}[sys.argv[1]](*sys.argv[2:]))
