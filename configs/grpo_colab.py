"""GRPO of Qwen2.5-0.5B or 1.5B on one free accelerator: Colab's TPU v5e or v6e chip, Kaggle's v5e-8, or a T4.

    python -m r1jax.train --config=configs/grpo_colab.py
    python -m r1jax.train --config=configs/grpo_colab.py:model=Qwen/Qwen2.5-1.5B --workdir=runs/colab_1.5b
    python -m r1jax.compile_check --config=configs/grpo_colab.py --topology=v5e:1x1

R1-Zero's recipe on GSM8K, which the hub has: a step samples 8 problems 8 times, prompts and completions of up to 1,024
tokens. The 0.5B model is trained in full, the 1.5B model by adapters. The memory of one v5e chip (16 GB) is what the
values below are chosen for: compiled, 0.5B needs 11.7 and 1.5B 7.6 of 15.75 GiB (docs/pods.md), and a v6e chip has
twice as much. It has not run on such machines.

Arguments after a colon, e.g. `configs/grpo_colab.py:model=Qwen/Qwen2.5-1.5B,lora=32`:

    model     Qwen/Qwen2.5-0.5B (default): a folder or hub name
    lora      -1 (default): 0, all parameters, up to a billion of them, else 16; a rank of adapters
    tokens    1024 (default): most tokens of a completion, and of a prompt
    dtype     bfloat16 (default); float16 on a T4, which has no bfloat16 units
"""

from ml_collections import ConfigDict

from r1jax.core.config import parse_args
from r1jax.runs.sizes import choose_sizes


def get_config(arg: str = "") -> ConfigDict:
    """The run for a model."""
    args = parse_args(arg, model="Qwen/Qwen2.5-0.5B", lora=-1, tokens=1024, dtype="bfloat16")
    rank = choose_sizes(args.model, args.lora).lora
    config = ConfigDict()
    config.stage = "grpo"
    config.seed = 0
    config.steps = 100

    config.model = ConfigDict(
        dict(
            name=args.model,
            dtype=args.dtype,
            param_dtype="bfloat16" if rank and args.dtype == "bfloat16" else "float32",  # a frozen base needs no more
            scan_layers=True,  # one layer is compiled, not all
            remat="full",  # layers keep their inputs only
        )
    )
    config.mesh = ConfigDict(dict(data=1, fsdp=-1))
    config.data = ConfigDict(
        dict(
            source="jsonl",
            path="openai/gsm8k:main:train",
            columns=dict(prompt="question", solution="answer"),
            extractor="gsm8k",
            template="r1",
            eval_problems=64,
            long_prompts="skip",
        )
    )
    config.rollout = ConfigDict(
        dict(
            prompts_per_step=8,
            group_size=8,
            max_new_tokens=args.tokens,
            max_prompt_tokens=args.tokens,
            slots=64,  # all of a step at once: a short cache fits
            prefill_batch=8,
            cache_pieces=1,  # a growing cache would be held twice for a moment
        )
    )
    config.rewards = ConfigDict(dict(answer_reward=1.0, r1_format_reward=0.3))
    config.train = ConfigDict(
        dict(
            micro_batch_size=1,
            completions_per_row=1,
            share_prompts=False,  # so that attention over long rows is the TPU's own kernel
            logits_chunk=256,  # of 151,936 logits each
            old_logprobs="sampler",  # one update a step: the policy is the sampler
        )
    )
    config.loss = ConfigDict(dict(clip_high=0.28))
    config.lora = ConfigDict(dict(rank=rank))
    config.optimizer = ConfigDict(dict(learning_rate=1e-4 if rank else 2e-6, schedule="linear", final_share=0.1))
    config.eval = ConfigDict(dict(name="gsm8k", every_steps=25, strict=("answer_reward",), format="r1_format_reward"))
    config.checkpoint = ConfigDict(dict(every_steps=10))  # free machines go away
    config.log = ConfigDict(dict(samples_per_step=16))
    return config
