"""One-digit sums, a task that is learned in a few steps, for comparing policy losses and rewards.

    python -m r1jax.train --config=configs/grpo_digits.py

SmolLM2-135M-Instruct learns to add two numbers from 1 to 9, without a template. Expected in two to three minutes on one
core: sampled accuracy on 20 held-out problems from 8% to 72% (gspo) or 82% to 87% (grpo, dr_grpo, dapo, rloo), over
three seeds; `python docs/curves.py` makes that comparison (docs/curves.md). With reward=self_rank the model ranks pairs
of its own answers and learns nothing, because its rankings are at chance level (docs/grpo.md): ten minutes, 8% to 5%.

Arguments after a colon, e.g. `configs/grpo_digits.py:loss=dapo,seed=1`:

    loss      grpo (default), r1, dr_grpo, dapo, gspo, cispo, rloo or reinforce++: a preset of r1jax/losses/policy.py
    seed      0 (default): seed of data order and sampling
    reward    number (default): the last number is correct; self_rank: the policy ranks its own answers, and correctness
              is only measured
"""

from ml_collections import ConfigDict

from r1jax.core.config import parse_args
from r1jax.core.errors import UserError


def get_config(arg: str = "") -> ConfigDict:
    """The run for `loss`, `seed` and `reward`."""
    args = parse_args(arg, loss="grpo", seed=0, reward="number")
    config = ConfigDict()
    config.stage = "grpo"
    config.seed = args.seed
    config.steps = 10

    config.model = ConfigDict(
        dict(
            name="models/SmolLM2-135M-Instruct.Q4_1.gguf",
            fetch="python launch/fetch_demo.py",
        )
    )
    # The held-out pairs are the same for all seeds.
    config.data = ConfigDict(
        dict(source="addition", eval_problems=20, args=dict(low=1, high=9), template="chat", seed=0)
    )
    config.rollout = ConfigDict(dict(max_new_tokens=20))
    # One rollout a step for every loss, dapo too: the same budget. Raise max_rounds to let it ask again.
    config.dynamic_sampling = ConfigDict(dict(max_rounds=1, filter_truncated=False))
    config.judge = ConfigDict(dict(max_new_tokens=8))
    # Two updates a step, or ratios would all be 1 and the losses differ by their weights alone.
    config.train = ConfigDict(
        dict(updates_per_step=2, micro_batch_size=16, completions_per_row=16, old_logprobs="sampler")
    )
    # No KL term for any of them: a reference costs a third of a step. None: as the preset has it.
    config.loss = ConfigDict(dict(preset=args.loss, kl_coefficient=0.0))
    config.optimizer = ConfigDict(
        dict(learning_rate=1e-5, schedule="constant", beta1=0.9, beta2=0.99, weight_decay=0.0, clip_norm=1.0)
    )
    config.eval = ConfigDict(
        dict(name="digits", every_steps=5, temperature=1.0, strict=("number_reward",), lenient="number_reward")
    )
    config.log = ConfigDict(dict(show_every_steps=0, tensorboard=False))
    set_reward(config, args.reward)
    if args.loss == "r1":  # sixteen updates a step, of one group each
        config.train.updates_per_step, config.rollout.prompts_per_step, config.steps = 16, 16, 8
        config.train.micro_batch_size = config.train.completions_per_row = 8
    return config


def set_reward(config: ConfigDict, reward: str) -> None:
    """What is paid for."""
    if reward == "number":
        config.rewards = ConfigDict(dict(number_reward=1.0))
    elif reward == "self_rank":
        # Two at a time, after worked examples: of eight at once, asked in chat, this model wrote no ranking at all.
        ranks = dict(
            weight=1.0, template="rank_shots", as_text=True, at_once=2, judgements=4, compare_to="number_reward"
        )
        config.rewards = ConfigDict(dict(self_rank_reward=ranks, number_reward=0.0))
    else:
        raise UserError(f'argument reward must be number or self_rank, got "{reward}"')
