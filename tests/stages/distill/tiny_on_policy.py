r"""On-policy distillation of seconds for the tests: a tiny student learns one-digit sums from a tiny teacher.

python -m r1jax.train --config=tests/stages/distill/tiny_on_policy.py \
    --config.model.name=STUDENT --config.teacher.name=TEACHER
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    return ConfigDict(
        {
            "stage": "distill",
            "method": "on_policy",
            "seed": 0,
            "steps": 30,
            "model": {"name": ""},
            "teacher": {"name": ""},
            "mesh": {"data": -1},
            "data": {"source": "addition", "eval_problems": 0, "args": {"low": 1, "high": 5}, "template": "plain"},
            "rollout": {
                "prompts_per_step": 8,
                "group_size": 8,
                "max_new_tokens": 4,
                "temperature": 1.0,
                "slots": 64,
                "prefill_batch": 8,
            },
            "rewards": {"number_reward": 1.0},
            "train": {"updates_per_step": 1, "micro_batch_size": 64, "completions_per_row": 4, "logits_chunk": 0},
            "divergence": {"estimator": "full"},
            "optimizer": {"learning_rate": 4e-3, "schedule": "constant", "beta2": 0.95},
            "eval": {"name": "sums", "strict": ("number_reward",), "lenient": "number_reward", "format": ""},
            "checkpoint": {"every_steps": 0, "keep": 2},
            "log": {"samples_per_step": 4, "show_every_steps": 0, "tensorboard": False},
        }
    )
