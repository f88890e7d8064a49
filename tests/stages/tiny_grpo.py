"""A GRPO run of seconds for the tests: a tiny model learns to write lower-case letters.

python -m r1jax.train --config=tests/stages/tiny_grpo.py --config.model.name=FOLDER --workdir=DIR
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    return ConfigDict(
        {
            "stage": "grpo",
            "seed": 0,
            "steps": 3,
            "model": {
                "dtype": "float32",
                "param_dtype": "float32",
                "scan_layers": False,
                "remat": "none",
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "rules": {}},
            "data": {
                "source": "addition",
                "eval_problems": 5,
                "args": {"low": 1, "high": 9},
                "template": "plain",
                "seed": 0,
            },
            "rollout": {
                "prompts_per_step": 4,
                "group_size": 8,
                "max_new_tokens": 8,
                "max_prompt_tokens": 0,
                "temperature": 0.9,
                "top_k": 0,
                "top_p": 1.0,
                "min_p": 0.0,
                "slots": 16,
                "prefill_batch": 8,
                "max_new_tokens_schedule": (),
                "temperature_schedule": (),
            },
            "dynamic_sampling": {"max_rounds": 1, "filter_truncated": False},
            "curriculum": {"skip": 0.0, "low": 0.0, "high": 1.0, "reward": ""},
            "reference": {"every_updates": 0, "mixing": 1.0},
            "lora": {"rank": 0, "alpha": 16.0, "targets": ("attention.*", "mlp.*")},
            "judge": {"max_new_tokens": 8, "temperature": 1.0},
            "rewards": {
                "letters": {"weight": 2.0, "function": "tests.stages.letters:letters_reward"},
                "number_reward": 0.5,
            },
            "train": {
                "updates_per_step": 1,
                "micro_batch_size": 8,
                "completions_per_row": 4,
                "share_prompts": True,
                "logits_chunk": 0,
                "old_logprobs": "trainer",
            },
            "loss": {
                "clip_low": 0.2,
                "clip_high": 0.2,
                "kl_coefficient": 0.0,
                "kl_estimator": "k3",
                "kl_in": "loss",
                "aggregation": "token",
                "importance_correction": "none",
            },
            "optimizer": {
                "learning_rate": 2e-3,
                "schedule": "linear",
                "warmup_updates": 2,
                "final_share": 0.5,
                "weight_decay": 0.01,
            },
            "eval": {
                "name": "sums",
                "every_steps": 0,
                "temperature": 1.0,
                "strict": ("answer_reward",),
                "lenient": "number_reward",
                "format": "r1_format_reward",
            },
            "checkpoint": {"every_steps": 0, "keep": 2},
            "log": {"samples_per_step": -1, "show_every_steps": 2, "tensorboard": True},
        }
    )
