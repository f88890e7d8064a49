"""R1-Zero at the paper's scale: GRPO alone on DeepSeek-V3-Base, 671 billion parameters, on 512 TPU v5p chips.

    python -m r1jax.train --config=configs/r1_zero_671b.py --config.data.path=PROBLEMS.jsonl
    python -m r1jax.compile_check --config=configs/r1_zero_671b.py --topology=v5p:8x8x8

`PROBLEMS.jsonl` has the columns `problem` and `answer`. Settings are the paper's where it states them (2501.12948 and
its supplement): 16 answers per prompt, clip 10, KL 0.001, a new reference every 400 updates, learning rate 3e-6. Its
8,192 answers per rollout make 16 updates there and 4 here, so that each fills every chip. It has not run anywhere; the
second command reports what its programs need.

Experts are sharded over 64 groups of chips (expert=64), to which their tokens travel; within a group, and for all other
weights, parameters are sharded by fsdp. Receive buffers hold a quarter more than the balanced load; overflow is counted
in the metrics (`router/overflow`).

Arguments after a colon, e.g. `configs/r1_zero_671b.py:length=32768`:

    length  8192 (default): tokens of prompt and answer together; the paper's limit is 32768, and 65536 at the end
    slots   8 (default): sequences in flight per chip
    chips   512 (default): chips of the slice; prompts, slots and rows grow with them
"""

from ml_collections import ConfigDict

from r1jax.core.config import parse_args

PROMPT = 1024


def get_config(arg: str = "") -> ConfigDict:
    """The run for a length."""
    args = parse_args(arg, length=8192, slots=8, chips=512)
    config = ConfigDict()
    config.stage = "grpo"
    config.seed = 0
    config.steps = 650  # 10,400 updates

    config.model = ConfigDict(
        dict(
            name="deepseek-ai/DeepSeek-V3-Base",
            dtype="bfloat16",
            scan_layers=True,
            remat="full",
            buffer_factor=1.25,
            dispatch_tokens=8192,  # a row of a chip after the other: its buffers are the largest arrays there are
        )
    )
    # Its latents' 512 columns divide over at most 512 chips; more chips hold copies of the weights.
    copies = max(1, args.chips // 512)
    config.mesh = ConfigDict(dict(data=copies, fsdp=-1, expert=64))
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
            prompts_per_step=args.chips,
            group_size=16,
            max_new_tokens=args.length - PROMPT,
            max_prompt_tokens=PROMPT,
            slots=args.slots * args.chips,
            prefill_batch=args.chips,
            cache_pieces=1,  # a growing cache would be held twice for a moment
        )
    )
    config.rewards = ConfigDict(dict(answer_reward=1.0, r1_format_reward=1.0))
    config.train = ConfigDict(
        dict(
            updates_per_step=4,
            micro_batch_size=1,  # a row of a chip: shorter completions then need fewer rows, and memory is one row's
            completions_per_row=1,
            share_prompts=False,  # so that attention over long rows is the TPU's own kernel
            logits_chunk=1024,
        )
    )
    config.loss = ConfigDict(dict(preset="r1"))
    config.optimizer = ConfigDict(
        dict(
            learning_rate=3e-6,
            warmup_updates=10,
            beta2=0.95,
            offload=args.length > 8192,  # moments wait in the hosts' memory where caches are long
        )
    )
    config.eval = ConfigDict(dict(name="math", every_steps=25, strict=("answer_reward",), format="r1_format_reward"))
    config.checkpoint = ConfigDict(dict(every_steps=25))
    config.log = ConfigDict(dict(samples_per_step=64, show_every_steps=0))
    return config
