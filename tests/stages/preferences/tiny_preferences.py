"""Runs on pairs of seconds for the tests: a tiny model learns that a reply of lower-case letters is preferred.

python -m r1jax.train --config=tests/stages/preferences/tiny_preferences.py:dpo --config.model.name=FOLDER --workdir=DIR
"""

import pathlib

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

PAIRS = pathlib.Path(__file__).with_name("pairs.jsonl")


def get_config(arg: str = "") -> ConfigDict:
    return ConfigDict(
        {
            "stage": arg or "dpo",
            "seed": 0,
            "steps": 4,
            "model": {"name": ""},
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "data": {
                "sources": {"letters": {"path": str(PAIRS), "template": "plain"}},
                "length": 64,
                "bins": 8,
                "eval_rows": 20,
                "epochs": placeholder(int),
                "seed": 0,
            },
            "train": {"rows_per_step": 8, "micro_batch_size": 8, "logits_chunk": 0},
            "lora": {"rank": 0, "alpha": 16.0, "targets": ("attention.*", "mlp.*")},
            "optimizer": {
                "offload": False,
                "learning_rate": 3e-3,
                "schedule": "cosine",
                "warmup_updates": 2,
                "final_share": 0.1,
                "weight_decay": 0.01,
            },
            "eval": {"every_steps": 0},
            "checkpoint": {"every_steps": 0, "keep": 2},
            "log": {"tensorboard": True},
        }
    )
