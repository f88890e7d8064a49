"""An SFT run of seconds for the tests: a tiny model learns to write sums.

python -m r1jax.train --config=tests/stages/tiny_sft.py --config.model.name=FOLDER --workdir=DIR
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(arg: str = "") -> ConfigDict:
    return ConfigDict(
        {
            "stage": "sft",
            "seed": 0,
            "steps": 4,
            "model": {"name": ""},
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "data": {
                "sources": {"sums": {"path": "addition", "template": "plain", "args": {"low": 1, "high": 9}}},
                "length": 64,
                "bins": 4,
                "eval_rows": 20,
                "epochs": placeholder(int),
                "seed": 0,
            },
            "train": {"rows_per_step": 8, "micro_batch_size": 8, "logits_chunk": 0},
            "loss": {"mtp_weight": 0.3, "balance_weight": 1e-4, "bias_rate": 1e-3},
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
