"""A GRPO run of toy sizes in a pod's manner (no weights, layers scanned, remat, bfloat16), for its programs alone."""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    return ConfigDict(
        {
            "stage": "grpo",
            "steps": 3,
            "model": {
                "preset": arg or "tiny_llama",
                "dtype": "bfloat16",
                "scan_layers": True,
                "remat": "full",
            },
            "mesh": {"data": 2, "fsdp": -1, "tensor": 1},
            "data": {"source": "addition", "eval_problems": 5},
            "rollout": {
                "prompts_per_step": 16,
                "group_size": 8,
                "max_new_tokens": 32,
                "max_prompt_tokens": 32,
                "slots": 16,
                "prefill_batch": 8,
            },
            "rewards": {"number_reward": 1.0},
            "train": {"micro_batch_size": 8, "completions_per_row": 4, "logits_chunk": 64},
            "loss": {"kl_coefficient": 0.01},
        }
    )
