"""Supervised fine-tuning at the paper's scale: DeepSeek-V3-Base, 671 billion parameters, on 512 TPU v5p chips.

    python -m r1jax.train --config=configs/sft_671b.py --config.data.sources.traces.path=TRACES.jsonl
    python -m r1jax.compile_check --config=configs/sft_671b.py --topology=v5p:8x8x8

`TRACES.jsonl` has the column `messages`: the data of DeepSeek-R1's two fine-tuning stages, some thousand long answers
for the cold start and 800,000 samples for the second one (2501.12948, section 2.3, which also gives two epochs and, in
its supplement, learning rates from 5e-5 to 5e-6). It has not run anywhere; the second command reports what its programs
need.

Experts and weights are sharded as in configs/r1_zero_671b.py.

Arguments after a colon, e.g. `configs/sft_671b.py:length=32768,rows=1`:

    length  8192 (default): tokens of a packed row; the paper's is 32768
    rows    4 (default): rows per chip and update, one at a time
    chips   512 (default): chips of the slice; the rows of an update grow with them
"""

from ml_collections import ConfigDict

from r1jax.core.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    """The run for a length."""
    args = parse_args(arg, length=8192, rows=4, chips=512)
    config = ConfigDict()
    config.stage = "sft"
    config.seed = 0
    config.steps = 0  # as many as the epochs make

    config.model = ConfigDict(
        dict(
            name="deepseek-ai/DeepSeek-V3-Base",
            dtype="bfloat16",
            scan_layers=True,  # one layer of each kind is compiled, not 61
            remat="full",  # layers keep their inputs only
            buffer_factor=1.25,
            dispatch_tokens=8192,
        )
    )
    config.mesh = ConfigDict(dict(data=1, fsdp=-1, expert=64))
    config.data = ConfigDict(
        dict(
            sources=dict(traces=dict(path="TRACES.jsonl")),
            length=args.length,
            bins=512,
            truncation="drop",  # a trace without its end teaches not to end
            eval_rows=args.rows * args.chips,
            epochs=2,
            on_error="skip",
        )
    )
    config.train = ConfigDict(dict(rows_per_step=args.rows * args.chips, micro_batch_size=1, logits_chunk=1024))
    config.loss = ConfigDict(
        dict(
            mtp_weight=0.0,  # the paper says nothing of it after pre-training; 0.1 trains the prediction depth on
        )
    )
    config.optimizer = ConfigDict(
        dict(
            learning_rate=5e-5,
            schedule="cosine",
            warmup_updates=20,
            final_share=0.1,
            beta2=0.95,
            offload=False,  # True: moments wait in the hosts' memory, for slices of fewer chips
        )
    )
    config.eval = ConfigDict(dict(every_steps=50))
    config.checkpoint = ConfigDict(dict(every_steps=50))
    config.log = ConfigDict(dict(show_every_steps=0))
    return config
