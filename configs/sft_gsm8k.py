"""Supervised fine-tuning in miniature: a small real model learns to work out GSM8K's word problems from its solutions.

    python -m r1jax.train --config=configs/sft_gsm8k.py --config.data.sources.gsm8k.path=train.jsonl

SmolLM2-135M-Instruct is trained once on about 500 of the 7,473 worked solutions: the reasoning without calculator
annotations, then the answer in a box. `train.jsonl` has GSM8K's columns `question` and `answer`.
Expected: thirteen minutes on two busy cores, in which the loss of held-out solutions falls from 1.44 to 0.91 and the
accuracy of their tokens rises from 65% to 75%. A model of this size solves almost nothing before or after: pass@1 on
300 problems each, at DeepSeek's temperature of 0.6,

    GSM8K                               0.0%        ->  0.3% ± 0.3
    SVAMP                               0.0%        ->  0.7% ± 0.5    last number 2.3% ± 0.9 -> 4.3% ± 1.2
    one sum or product told in words    0.3% ± 0.3  ->  3.7% ± 1.1    last number 6.7% ± 1.4 -> 3.7% ± 1.1

so it learns the format: for the last kind 69% of the replies end in a box afterwards, 1% before.

Arguments after a colon, e.g. `configs/sft_gsm8k.py:lora=8`:

    lora  0 (default): train all parameters; else the rank of adapters on the frozen model
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from r1jax.core.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    """The run, with or without adapters."""
    args = parse_args(arg, lora=0)
    config = ConfigDict()
    config.stage = "sft"
    config.seed = 0
    config.steps = 24

    config.model = ConfigDict(
        dict(
            name="models/SmolLM2-135M-Instruct.Q4_1.gguf",
            fetch="python launch/fetch_demo.py",
            dtype="float32",  # bfloat16 halves memory on accelerators; on CPU it is slower
            scan_layers=False,  # unrolled layers are faster on CPU
        )
    )
    gsm8k = dict(
        path="train.jsonl",
        columns=dict(prompt="question", completion="answer"),
        extractor="gsm8k",
        reply="{reasoning}\nThe answer is \\boxed{{answer}}.",
    )
    config.data = ConfigDict(
        dict(
            sources=dict(gsm8k=gsm8k),
            length=1024,  # about five solutions a row
            bins=64,
            truncation="drop",
            read_ahead=2,
            eval_rows=50,
            epochs=placeholder(int),  # a fifteenth of one pass: `steps` ends it
        )
    )
    config.train = ConfigDict(dict(rows_per_step=4))
    config.loss = ConfigDict(dict(mtp_weight=0.3, balance_weight=1e-4, bias_rate=1e-3))  # of depths and experts, if any
    config.lora = ConfigDict(dict(rank=args.lora, alpha=16.0, targets=("attention.*", "mlp.*")))
    config.optimizer = ConfigDict(
        dict(
            learning_rate=5e-4 if args.lora else 1e-4,  # adapters begin at zero and bear more
            schedule="cosine",
            warmup_updates=3,
            final_share=0.1,
            beta2=0.95,
        )
    )
    config.eval = ConfigDict(dict(every_steps=8))
    config.checkpoint = ConfigDict(dict(every_steps=8))
    config.log = ConfigDict(dict(show_every_steps=0))
    return config
