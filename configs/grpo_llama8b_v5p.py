"""GRPO of Llama-3.1-8B on 32 TPU v5p chips: R1-Zero's recipe for a dense model whose weights fit on each chip.

    python -m r1jax.train --config=configs/grpo_llama8b_v5p.py --config.data.path=MATH.jsonl
    python -m r1jax.compile_check --config=configs/grpo_llama8b_v5p.py --topology=v5p:4x4x2

`MATH.jsonl` has the columns `problem` and `answer`. On a pod: `python3 launch/tpu_pod.py run --type=v5p-64 ...`. It has
not run on a TPU; decoding and the hand-over of weights were compiled for one and fit. The second command compiles all.

Rows are 8,192 tokens: a prompt of up to 1,024 and a completion of up to 7,168. A step samples 64 prompts 16 times, with
32 sequences in flight per chip. Training shards all state over all 32 chips (fsdp); to sample, each chip gets all
weights, 16 of its 96 GB (`rollout.mesh` is left at its rule).
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The run."""
    config = ConfigDict()
    config.stage = "grpo"
    config.seed = 0
    config.steps = 500

    config.model = ConfigDict(
        dict(
            name="meta-llama/Llama-3.1-8B",
            dtype="bfloat16",
            scan_layers=True,  # one layer is compiled, not 32
            remat="full",  # rows of 8,192 tokens: layers keep their inputs only
        )
    )
    config.mesh = ConfigDict(dict(data=1, fsdp=-1))
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
            slots=1024,
            prefill_batch=32,
            cache_pieces=1,  # a growing cache would be held twice for a moment
        )
    )
    config.rewards = ConfigDict(dict(answer_reward=1.0, r1_format_reward=0.2))
    config.train = ConfigDict(
        dict(
            updates_per_step=4,
            micro_batch_size=2,
            completions_per_row=1,
            share_prompts=False,  # so that attention over long rows is the TPU's own kernel
            logits_chunk=512,  # of 128,256 logits each
        )
    )
    config.loss = ConfigDict(dict(clip_high=0.28))
    config.optimizer = ConfigDict(
        dict(
            warmup_updates=10,
            offload=False,  # True: moments wait in the hosts' memory, for slices of fewer chips
        )
    )
    config.eval = ConfigDict(dict(name="math", every_steps=25, strict=("answer_reward",), format="r1_format_reward"))
    config.checkpoint = ConfigDict(dict(every_steps=10))
    config.log = ConfigDict(dict(samples_per_step=64, show_every_steps=0))
    return config
