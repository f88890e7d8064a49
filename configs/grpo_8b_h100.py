"""GRPO of Llama-3.1-8B on one machine with eight H100: R1-Zero's recipe on GPUs.

    python -m r1jax.train --config=configs/grpo_8b_h100.py --config.data.path=MATH.jsonl
    python -m r1jax.train --config=configs/grpo_8b_h100.py:model=Qwen/Qwen3-30B-A3B --config.data.path=MATH.jsonl

`MATH.jsonl` has the columns `problem` and `answer`. On a machine with the GPUs `bash launch/gpu.sh` sets
up and takes the same flags. It has not run on GPUs: its programs were lowered for them, and the
memory is that of the closed form (docs/pods.md).

Rows are 8,192 tokens: a prompt of up to 1,024 and a completion of up to 7,168. A step samples 64 prompts 16 times, with
16 sequences in flight per GPU (8 of the model with experts). Training shards all state over the GPUs, by fsdp or with
the experts; how weights lie to sample is left to the rule (`rollout.mesh`).

Arguments after a colon:

    model  meta-llama/Llama-3.1-8B (default); Qwen/Qwen3-30B-A3B, whose moments wait in the host's memory
"""

from ml_collections import ConfigDict

from r1jax.core.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    """The run for a model."""
    args = parse_args(arg, model="meta-llama/Llama-3.1-8B")
    routed = args.model.endswith("A3B")  # has experts
    config = ConfigDict()
    config.stage = "grpo"
    config.seed = 0
    config.steps = 500

    config.model = ConfigDict(
        dict(
            name=args.model,
            dtype="bfloat16",
            scan_layers=True,  # one layer is compiled, not all
            remat="full",  # rows of 8,192 tokens: layers keep their inputs only
        )
    )
    if routed:
        config.model.buffer_factor, config.model.dispatch_tokens = 1.25, 8192
    config.mesh = ConfigDict(dict(data=1, expert=-1) if routed else dict(data=1, fsdp=-1))
    config.data = ConfigDict(
        dict(
            source="jsonl",
            columns=dict(prompt="problem", solution="answer"),
            template="r1",
            eval_problems=128,
            on_error="skip",
        )
    )
    config.rollout = ConfigDict(
        dict(
            prompts_per_step=64,
            group_size=16,
            max_new_tokens=7168,
            max_prompt_tokens=1024,
            slots=64 if routed else 128,
            prefill_batch=16,
            cache_pieces=1,  # a growing cache would be held twice for a moment
        )
    )
    config.rewards = ConfigDict(dict(answer_reward=1.0, r1_format_reward=0.2))
    config.train = ConfigDict(
        dict(
            updates_per_step=4,
            micro_batch_size=1,
            completions_per_row=1,
            share_prompts=False,
            logits_chunk=512,
        )
    )
    config.loss = ConfigDict(dict(clip_high=0.28))
    config.optimizer = ConfigDict(dict(warmup_updates=10, offload=routed))
    config.eval = ConfigDict(dict(name="math", every_steps=25, strict=("answer_reward",), format="r1_format_reward"))
    config.checkpoint = ConfigDict(dict(every_steps=10))
    config.log = ConfigDict(dict(samples_per_step=64, show_every_steps=0))
    return config
