"""Fine-tuning of Llama-3.1-8B on long answers, on one machine with eight H100.

    python -m r1jax.train --config=configs/sft_8b_h100.py --config.data.sources.traces.path=TRACES.jsonl
    python -m r1jax.train --config=configs/sft_8b_h100.py:model=Qwen/Qwen3-30B-A3B ...

`TRACES.jsonl` has the column `messages`. On a machine with the GPUs `bash launch/gpu.sh` sets
up and takes the same flags. It has not run on GPUs: its programs were lowered for them, and the memory is
that of the closed form (docs/pods.md).

Arguments after a colon, e.g. `configs/sft_8b_h100.py:length=32768,rows=8`:

    model   meta-llama/Llama-3.1-8B (default); Qwen/Qwen3-30B-A3B, whose moments wait in the host's memory
    length  8192 (default): tokens of a packed row
    rows    64 (default): rows of an update, of which each GPU computes one at a time
"""

from ml_collections import ConfigDict

from r1jax.core.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    """The run for a model and a length."""
    args = parse_args(arg, model="meta-llama/Llama-3.1-8B", length=8192, rows=64)
    routed = args.model.endswith("A3B")  # has experts
    config = ConfigDict()
    config.stage = "sft"
    config.seed = 0
    config.steps = 0  # as many as the epochs make

    config.model = ConfigDict(
        dict(
            name=args.model,
            dtype="bfloat16",
            scan_layers=True,  # one layer is compiled, not all
            remat="full",
        )
    )
    if routed:
        config.model.buffer_factor, config.model.dispatch_tokens = 1.25, 8192
    config.mesh = ConfigDict(dict(data=1, expert=-1) if routed else dict(data=1, fsdp=-1))
    config.data = ConfigDict(
        dict(
            sources=dict(traces=dict(path="TRACES.jsonl")),
            length=args.length,
            truncation="drop",  # a trace without its end teaches not to end
            eval_rows=args.rows,
            epochs=3,
            on_error="skip",
        )
    )
    config.train = ConfigDict(dict(rows_per_step=args.rows, micro_batch_size=1, logits_chunk=1024))
    config.optimizer = ConfigDict(
        dict(learning_rate=1e-5, schedule="cosine", warmup_updates=20, final_share=0.1, beta2=0.95, offload=routed)
    )
    config.eval = ConfigDict(dict(every_steps=100))
    config.checkpoint = ConfigDict(dict(every_steps=100))
    config.log = ConfigDict(dict(show_every_steps=0))
    return config
