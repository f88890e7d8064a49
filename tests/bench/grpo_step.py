"""Seconds of a GRPO step on fixed work, rollouts and training apart, as one JSON line.

The work: 8 prompts x 8 completions x 128 forced new tokens, SmolLM2-135M float32, random rewards, no KL, full
fine-tuning with AdamW. Peers are timed on the same machine in the same hour and compared as ratios.

    python tests/bench/grpo_step.py [--prompts 8 --group 8 --new 128 --steps 3 --model models/...gguf]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from r1jax.core.config import load_config  # noqa: E402
from r1jax.core.metrics import read_rows  # noqa: E402


def random_reward(completions: list[str], **columns: object) -> list[float]:
    """Noise, so that every group has a spread and all of it is trained on."""
    return [random.random() for _ in completions]


def main() -> None:
    """Runs one more step than asked; the first, which compiles, is not counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("prompts", 8), ("group", 8), ("new", 128), ("steps", 3), ("micro", 8), ("row", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default=str(ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"))
    args = parser.parse_args()
    random.seed(0)
    sys.modules["grpo_step"] = sys.modules[__name__]
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "prompts.jsonl"
        numbers = lambda: random.randint(10, 99)
        texts = [f"What is {numbers()} + {numbers()}? Think step by step." for _ in range(512)]
        data.write_text("".join(json.dumps({"prompt": text, "solution": "0"}) + "\n" for text in texts))
        config = load_config(f"{ROOT}/configs/grpo_zero.py:template=chat")
        config.unlock()
        config.model.name, config.steps = args.model, args.steps + 1
        config.data.update(source="jsonl", path=str(data), eval_problems=0, args={})
        config.rollout.update(
            prompts_per_step=args.prompts, group_size=args.group, max_new_tokens=args.new, ignore_stop=True
        )
        config.train.update(micro_batch_size=args.micro, completions_per_row=args.row)
        config.rewards = {"random": {"function": "grpo_step:random_reward", "weight": 1.0}}
        config.optimizer.learning_rate = 1e-6
        from r1jax.stages.grpo import run
        from r1jax.stages.registry import resolve_run

        workdir = pathlib.Path(folder) / "run"
        run(resolve_run(config).settings, workdir)
        rows = read_rows(workdir / "metrics.jsonl")[1:]
    pick = lambda key: [row[key] for row in rows]
    figures = {"step_s": pick("step_time"), "gen_s": pick("time/rollout"), "train_s": pick("time/train")}
    print(json.dumps({"peer": "r1jax", **figures, "completion_tokens": args.prompts * args.group * args.new}))


if __name__ == "__main__":
    main()
