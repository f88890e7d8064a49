"""A collection of seconds for the tests: what a random model says, as far as its rewards and filters go.

python -m r1jax.train --config=tests/stages/tiny_collection.py --config.model.name=A
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    return ConfigDict(
        {
            "stage": "rejection_sampling",
            "seed": 0,
            "model": {"name": ""},
            "data": {
                "source": "addition",
                "eval_problems": 5,
                "args": {"low": 1, "high": 30},
                "template": "plain",
                "seed": 0,
            },
            "generate": {"num_samples": 4, "temperature": 0.9, "max_new_tokens": 12, "prompts": 160, "slots": 4},
            "rewards": {"letters": {"function": "tests.stages.stub_teacher:letters_and_time_reward"}},
            "filters": {"min_reward": 0.05, "min_pass_rate": 0.0, "near_duplicates": 0.8, "samples_per_prompt": 3},
        }
    )
