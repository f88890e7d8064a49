"""Distillation of a reasoning model's traces into Qwen2.5-Math-7B on TPU v5p: the recipe of
DeepSeek-R1-Distill-Qwen-7B.

    python -m r1jax.train --config=configs/distill_qwen7b.py --config.data.sources.traces.path=TRACES.jsonl
    python -m r1jax.compile_check --config=configs/distill_qwen7b.py --topology=v5p:4x4x2

`TRACES.jsonl` has the column `messages`: a question and a teacher's answer with its reasoning, as in the 800,000
samples of the paper (2501.12948, section 2.4; two epochs) or open-r1's Mixture-of-Thoughts. On a pod: `python3
launch/tpu_pod.py run --type=v5p-64 ...`. It has not run on a TPU; its programs compile for one and fit, as the second
command shows.

Arguments after a colon, e.g. `configs/distill_qwen7b.py:model=meta-llama/Llama-3.1-8B`:

    model  Qwen/Qwen2.5-Math-7B (default), or another base model by its hub name
    rows   4 (default): packed rows of 8,192 tokens per chip and accumulation
"""

from ml_collections import ConfigDict

from r1jax.core.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    """The run for a base model."""
    args = parse_args(arg, model="Qwen/Qwen2.5-Math-7B", rows=4)
    config = ConfigDict()
    config.stage = "sft"
    config.seed = 0
    config.steps = 0  # as many as the epochs make

    config.model = ConfigDict(
        dict(
            name=args.model,
            dtype="bfloat16",
            scan_layers=True,  # one layer is compiled, not 28
            remat="full",  # rows of 8,192 tokens: layers keep their inputs only
        )
    )
    config.mesh = ConfigDict(dict(data=1, fsdp=-1))
    config.data = ConfigDict(
        dict(
            sources=dict(traces=dict(path="TRACES.jsonl")),
            length=8192,
            bins=512,
            truncation="drop",  # a trace without its end teaches not to end
            eval_rows=256,
            epochs=2,
            on_error="skip",
        )
    )
    # 128 rows of 8,192 tokens are a million tokens an update.
    config.train = ConfigDict(dict(rows_per_step=128, micro_batch_size=args.rows, logits_chunk=512))
    config.optimizer = ConfigDict(
        dict(
            learning_rate=4e-5,
            schedule="cosine",
            warmup_updates=100,
            final_share=0.1,
            beta2=0.95,
            offload=False,  # True: moments wait in the hosts' memory, for slices of fewer chips
        )
    )
    config.eval = ConfigDict(dict(every_steps=100))
    config.checkpoint = ConfigDict(dict(every_steps=100))
    config.log = ConfigDict(dict(show_every_steps=0))
    return config
