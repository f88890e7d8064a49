"""A distillation of seconds for the tests: what a random teacher says with many letters, half a model learns to say.

python -m r1jax.train --config=tests/stages/distill/tiny_distill.py --config.teacher.name=A --config.student.name=B
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(arg: str = "") -> ConfigDict:
    return ConfigDict(
        {
            "stage": "distill",
            "method": "traces",
            "seed": 0,
            "steps": 4,
            "teacher": {"name": ""},
            "student": {"name": "", "layers": 1},
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "data": {
                "source": "addition",
                "eval_problems": 5,
                "args": {"low": 1, "high": 9},
                "template": "plain",
                "seed": 0,
            },
            "generate": {"num_samples": 4, "temperature": 0.9, "max_new_tokens": 60, "prompts": 30, "slots": 16},
            "rewards": {"letters": {"function": "tests.stages.letters:letters_reward"}},
            "filters": {"min_reward": 0.05, "min_pass_rate": 0.0, "language": placeholder(str)},
            "corpus": {"sources": {}, "length": 96, "bins": 4, "epochs": placeholder(int), "eval_rows": 4},
            "train": {"rows_per_step": 8, "micro_batch_size": 8},
            "optimizer": {"learning_rate": 3e-3, "schedule": "constant", "warmup_updates": 0},
            "eval": {"name": "sums", "strict": ("number_reward",), "lenient": "number_reward"},
            "checkpoint": {"every_steps": 2, "keep": 2},
            "log": {"tensorboard": False},
        }
    )
