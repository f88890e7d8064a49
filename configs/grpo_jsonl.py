"""GRPO of any model on a file of prompts, with a reward named in the command.

    python -m r1jax.train --config=configs/grpo_jsonl.py
    python -m r1jax.train --config=configs/grpo_jsonl.py:data=FILE.jsonl,model=NAME,reward=number --workdir=runs/mine

A row has `prompt`, a text or a list of role and content, and the columns that the reward reads: `solution` for answer
and number, `verification_info` for code (docs/rewards.md). 100 rows are held out and asked before and after.

The first command needs no file: SmolLM2-135M-Instruct learns sums of two numbers from 10 to 99 from 400 of them, in
12 CPU minutes: 1.0% ± 1.0 -> 48.0% ± 5.0 of the held-out sums sampled, 6.0% -> 59.0% greedy.

Sizes follow the model's parameters and the kind of device found (r1jax/runs/sizes.py): on a CPU float32, 12 prompts x 8
completions a step; on an accelerator bfloat16 and 32 x 8; models above a billion parameters train adapters. Any value
can be changed by a flag, such as --config.steps=200.

Arguments after a colon, e.g. `configs/grpo_jsonl.py:data=problems.jsonl,model=Qwen/Qwen2.5-0.5B,reward=answer`:

    data      "" (default): the example; else the file or data set
    model     "" (default): the demo model; else a folder, .gguf file, workdir or hub name
    reward    number (default): the last number is the solution; answer: the answer in tags or a box is, in R1-Zero's
              template; code: programs pass their tests; else module:function of your own (docs/extend.md)
    steps     16 (default): rollouts, each with one update
    tokens    0 (default): most tokens of a completion, by the device 64 or 512, and 20 for the example
    lora      -1 (default): by the model's size; 0: train all parameters; else the rank of adapters
"""

from ml_collections import ConfigDict

from r1jax.core.config import find_shipped, parse_args
from r1jax.runs.problem_file import describe_problems
from r1jax.runs.sizes import choose_sizes

DEMO = dict(name="models/SmolLM2-135M-Instruct.Q4_1.gguf", fetch="python launch/fetch_demo.py")


def get_config(arg: str = "") -> ConfigDict:
    """The run for a file, a model and a reward."""
    args = parse_args(arg, data="", model="", reward="number", steps=16, tokens=0, lora=-1)
    model = dict(name=args.model) if args.model else DEMO
    sizes = choose_sizes(model["name"], args.lora)
    tokens = args.tokens or (sizes.new_tokens if args.data else 20)
    on_cpu = sizes.kind == "cpu"
    config = ConfigDict()
    config.stage = "grpo"
    config.steps = args.steps
    config.model = ConfigDict({**model, **sizes.model})
    config.mesh = ConfigDict(dict(data=1, fsdp=-1))
    problems = describe_problems(args.data or find_shipped("configs/data/sums.jsonl"), args.reward)
    config.data = ConfigDict(problems.data)
    config.rollout = ConfigDict(
        dict(
            prompts_per_step=12 if on_cpu else 32,
            group_size=8,
            max_new_tokens=tokens,
            slots=64 if on_cpu else 256,
        )
    )
    config.rewards = ConfigDict(problems.rewards)
    if args.reward == "answer":
        config.rewards["r1_format_reward"] = 0.3
    config.train = ConfigDict(
        dict(
            micro_batch_size=fit(sizes.row_tokens, tokens),
            completions_per_row=min(fit(sizes.length, tokens), fit(sizes.row_tokens, tokens)),
            logits_chunk=0 if on_cpu else tokens,
            old_logprobs="sampler",  # one update a step: the policy is the sampler
        )
    )
    config.loss = ConfigDict(dict(clip_high=0.28))
    config.lora = ConfigDict(dict(rank=sizes.lora))
    rate = 1e-4 if sizes.lora else 2e-5 if sizes.parameters <= 5e8 else 2e-6
    config.optimizer = ConfigDict(dict(learning_rate=rate, schedule="linear", final_share=0.1))
    config.eval = ConfigDict(problems.eval)
    return config


def fit(row: int, tokens: int) -> int:
    """Completions that `row` tokens hold: a power of two, at most 32."""
    return 1 << min(5, max(0, (row // tokens).bit_length() - 1))
