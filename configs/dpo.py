"""Preferences without a reward model: DPO and its kin, of any model on a file of pairs.

    python -m r1jax.train --config=configs/dpo.py
    python -m r1jax.train --config=configs/dpo.py:data=FILE.jsonl,model=NAME --workdir=runs/mine

A row has `prompt`, `chosen` and `rejected`, texts or messages; UltraFeedback's and HH's forms are known, and other
names are mapped by --config.data.sources.rows.columns (docs/preferences.md). Up to 50 pairs are held out, whose loss,
accuracy and margin are measured before and after. The log-probs of the reference, the model before the first step, are
computed once and kept in the workdir.

The first command needs no file: SmolLM2-135M-Instruct learns from 300 pairs to show the work of a conversion of units
where it would guess, in 20 steps; held-out `eval/rewards/accuracies` tells how far it came.

Sizes follow the model's parameters and the kind of device found (r1jax/runs/sizes.py); the learning rate is a twentieth
of fine-tuning's, for DPO moves far on small steps. A row holds whole pairs: a text has at most half of its length.

Arguments after a colon, e.g. `configs/dpo.py:data=pairs.jsonl,model=Qwen/Qwen2.5-0.5B-Instruct,loss=simpo`:

    data    "" (default): the example; else the file or data set
    model   "" (default): the demo model; else a folder, .gguf file, workdir or hub name
    loss    dpo (default), cdpo, ipo, kto, orpo or simpo
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
    args = parse_args(arg, data="", model="", loss="dpo", steps=20, lora=-1)
    model = dict(name=args.model) if args.model else DEMO
    sizes = choose_sizes(model["name"], args.lora)
    config = ConfigDict()
    config.stage = "dpo"
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
    config.train = ConfigDict(sizes.supervised_train)
    config.loss = ConfigDict(dict(type=args.loss))  # beta and the others by the method (losses/preference.py)
    config.lora = ConfigDict(dict(rank=sizes.lora))
    optimizer = sizes.supervised_optimizer
    config.optimizer = ConfigDict({**optimizer, "learning_rate": optimizer["learning_rate"] / 20})
    config.log = ConfigDict(dict(show_every_steps=0))
    return config
