"""An agent of your own in training: a program with the `openai` client learns to use its calculator.

    python -m r1jax.train --config=configs/grpo_harness.py

Each trajectory is one run of configs/programs/calculator_agent.py, which knows nothing of r1jax: it writes its prompt,
asks for completions, executes calls of its calculator, asks on, and pays itself 1 for the right number. Its calls reach
the policy through OpenAI's API, are recorded as ids with their log-probs, and are trained on as one sequence.
Expected (seed 0): right answers to 24 held-out problems from 8.3% ± 5.8 to 58.3% ± 10.3 sampled, and from 4.2% to 100%
greedy, after three steps. Each of the 192 trajectories starts a Python that imports its client: 42 minutes on two cores
that others used as well, where 13 programs exceeded two minutes and were left out.

Needs the extra `serve`, and `openai` in the Python of the program. Arguments after a colon:

    python  python (default): Python with `openai` that runs the agent; `python` is the one that runs r1jax
    seed    0 (default): seed of data order and sampling
"""

import pathlib

from ml_collections import ConfigDict

from r1jax.core.config import parse_args

AGENT = pathlib.Path(__file__).parent / "programs" / "calculator_agent.py"


def get_config(arg: str = "") -> ConfigDict:
    """The run for `python` and `seed`."""
    args = parse_args(arg, python="python", seed=0)
    config = ConfigDict()
    config.stage = "grpo"
    config.seed = args.seed
    config.steps = 3

    config.model = ConfigDict(
        dict(
            name="models/SmolLM2-135M-Instruct.Q4_1.gguf",
            fetch="python launch/fetch_demo.py",
            scan_layers=False,  # unrolled layers are faster on CPU
        )
    )
    config.data = ConfigDict(
        dict(
            source="arithmetic",
            problems=2000,
            eval_problems=24,  # each is a program that imports its client, before and after, sampled and greedy
            args=dict(low=100, high=999, question="What is {a} {sign} {b}?"),
            template="plain",  # the program makes a prompt of the question
            seed=0,
        )
    )
    config.harness = ConfigDict(dict(command=(args.python, str(AGENT)), workers=8))
    config.episode = ConfigDict(dict(turn_tokens=20, max_tokens=48))
    config.rollout = ConfigDict(
        dict(prompts_per_step=4, max_new_tokens=20, max_prompt_tokens=96, slots=32)  # the prompts have up to 90 tokens
    )
    config.rewards = ConfigDict(dict(environment_reward=1.0))  # what the program's last line says
    config.train = ConfigDict(dict(micro_batch_size=16, completions_per_row=8, old_logprobs="sampler"))
    config.loss = ConfigDict(dict(clip_high=0.28))
    config.optimizer = ConfigDict(dict(learning_rate=4e-5, schedule="linear", final_share=0.1))
    config.eval = ConfigDict(dict(name="arithmetic", strict=("environment_reward",), format=""))
    config.log = ConfigDict(dict(show_every_steps=1))
    return config
