"""Supervised fine-tuning of any model on a file of conversations, of prompts with completions, or of texts.

    python -m r1jax.train --config=configs/sft_chat.py
    python -m r1jax.train --config=configs/sft_chat.py:data=FILE.jsonl,model=NAME --workdir=runs/mine

A row has `messages` (a list of role and content; loss on what the assistant says), or `prompt` and `completion`, or
`text`; which of them is seen row by row. FILE may also be Parquet, ArrayRecord or a hub data set (docs/data.md). Up to
50 rows are held out, whose loss is measured before and after.

The first command needs no file: SmolLM2-135M-Instruct learns to convert units from 300 conversations of one sentence,
in 11 CPU minutes. Held-out loss 0.86 -> 0.06; 100 other questions (configs/data/units_held_out.jsonl),
greedy: 4.0% ± 2.0 -> 53.0% ± 5.0 right.

Sizes follow the model's parameters and the kind of device found (r1jax/runs/sizes.py): on a CPU float32 and updates of
two packed rows of 512 tokens; on an accelerator bfloat16 and 16 rows of 2,048; models above a billion parameters train
adapters. Any value can be changed by a flag, such as --config.data.length=4096.

Arguments after a colon, e.g. `configs/sft_chat.py:data=chats.jsonl,model=Qwen/Qwen2.5-0.5B-Instruct,epochs=1`:

    data    "" (default): the example; else the file or data set
    model   "" (default): the demo model; else a folder, .gguf file, workdir or hub name
    epochs  2 (default): passes over the data
    lora    -1 (default): by the model's size; 0: train all parameters; else the rank of adapters
"""

from ml_collections import ConfigDict

from r1jax.core.config import find_shipped, parse_args
from r1jax.runs.sizes import choose_sizes

DEMO = dict(name="models/SmolLM2-135M-Instruct.Q4_1.gguf", fetch="python launch/fetch_demo.py")


def get_config(arg: str = "") -> ConfigDict:
    """The run for a file and a model."""
    args = parse_args(arg, data="", model="", epochs=2, lora=-1)
    model = dict(name=args.model) if args.model else DEMO
    sizes = choose_sizes(model["name"], args.lora)
    config = ConfigDict()
    config.stage = "sft"
    config.model = ConfigDict({**model, **sizes.model})
    config.mesh = ConfigDict(dict(data=1, fsdp=-1))
    config.data = ConfigDict(
        dict(
            sources=dict(rows=dict(path=args.data or find_shipped("configs/data/units.jsonl"))),
            length=sizes.length,
            bins=64,  # of a small set: more rows at a time would be all of it
            eval_rows=50,
            epochs=args.epochs,
        )
    )
    config.train = ConfigDict(sizes.supervised_train)
    config.lora = ConfigDict(dict(rank=sizes.lora))
    config.optimizer = ConfigDict(sizes.supervised_optimizer)
    config.log = ConfigDict(dict(show_every_steps=0))
    return config
