"""A reward model: any model learns to score texts by pairs of which one is preferred.

    python -m r1jax.train --config=configs/reward_model.py
    python -m r1jax.train --config=configs/reward_model.py:data=FILE.jsonl,model=NAME --workdir=runs/mine

Rows are those of configs/dpo.py: `prompt`, `chosen`, `rejected`, and where given a margin or two scores, whose
difference the model's scores must exceed. Of up to 50 held-out pairs accuracy and calibration are measured before and
after; `calibration.json` in the workdir has the tenths.

The first command needs no file: SmolLM2-135M-Instruct learns from 300 pairs to prefer a worked conversion of units to a
guess, in 20 steps; held-out `eval/accuracy` tells how far it came.

The result is a MODEL that scores and writes nothing: a reward of GRPO, `rewards.reward_model = {"model": "runs/mine"}`
(docs/preferences.md), and after `python -m r1jax.convert` a folder for transformers'
AutoModelForSequenceClassification. At R1's scale: 66,000 pairs, batches of 256, learning rate 6e-6, one epoch, 8,192
tokens (2501.12948, B.3).

Arguments after a colon, e.g. `configs/reward_model.py:data=pairs.jsonl,model=Qwen/Qwen2.5-0.5B`:

    data    "" (default): the example; else the file or data set
    model   "" (default): the demo model; else a folder, .gguf file, workdir (of a reward model too) or hub name
    steps   20 (default): updates
    lora    -1 (default): by the model's size; 0: train all parameters; else the rank of adapters
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from r1jax.core.config import find_shipped, parse_args
from r1jax.runs.sizes import choose_sizes

DEMO = dict(name="models/SmolLM2-135M-Instruct.Q4_1.gguf", fetch="python launch/fetch_demo.py")


def get_config(arg: str = "") -> ConfigDict:
    """The run for a file and a model."""
    args = parse_args(arg, data="", model="", steps=20, lora=-1)
    model = dict(name=args.model) if args.model else DEMO
    sizes = choose_sizes(model["name"], args.lora)
    config = ConfigDict()
    config.stage = "reward_model"
    config.steps = args.steps
    config.model = ConfigDict({**model, **sizes.model})
    config.mesh = ConfigDict(dict(data=1, fsdp=-1))
    config.data = ConfigDict(
        dict(
            sources=dict(rows=dict(path=args.data or find_shipped("configs/data/unit_pairs.jsonl"))),
            length=sizes.length,
            bins=64,
            eval_rows=50,
            epochs=placeholder(int),  # `steps` ends the run
        )
    )
    train = {key: value for key, value in sizes.supervised_train.items() if key != "logits_chunk"}  # it has no logits
    config.train = ConfigDict(train)
    config.loss = ConfigDict(dict(center_coefficient=0.01))  # scores around 0, as a policy's reward needs
    config.lora = ConfigDict(dict(rank=sizes.lora))
    optimizer = sizes.supervised_optimizer
    config.optimizer = ConfigDict({**optimizer, "learning_rate": optimizer["learning_rate"] / 5})
    config.log = ConfigDict(dict(show_every_steps=0))
    return config
