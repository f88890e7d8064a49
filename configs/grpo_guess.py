"""A game of several turns in miniature: a model that knows nothing learns to guess a number by higher and lower.

    python -m r1jax.train --config=configs/grpo_guess.py

A Llama of 0.1 million parameters with random weights has three guesses for a number from 1 to 9, and hears `Higher.` or
`Lower.` after each (the environment `guess_number`). It is paid for winning, sooner rather than later, and a little for
guesses that are numbers at all. Always the same three numbers win a third of the games, the best play seven ninths.
Expected: 0% of 100 held-out games before and 51% ± 5 after (greedy 55% ± 5) in two minutes on two cores; other seeds
stop at what few fixed numbers win (seed 1: 2% and 33% ± 5, seed 2: 0% and 29% ± 5).

Arguments after a colon, e.g. `configs/grpo_guess.py:seed=1`:

    seed  0 (default): seed of weights, data order and sampling
"""

from ml_collections import ConfigDict

from r1jax.core.config import parse_args

WON, NUMBERS = "r1jax.environments.guessing:won_reward", "r1jax.environments.guessing:numbers_reward"


def get_config(arg: str = "") -> ConfigDict:
    """The run for `seed`."""
    args = parse_args(arg, seed=0)
    config = ConfigDict()
    config.stage = "grpo"
    config.seed = args.seed
    config.steps = 250

    config.model = ConfigDict(
        dict(
            preset="tiny_llama",
            sizes=dict(vocab_size=264, initializer_std=0.1, max_positions=256),
            seed=args.seed,
        )
    )
    config.data = ConfigDict(
        dict(source="same", problems=100_000, eval_problems=100, args=dict(question="A game."), template="plain")
    )
    config.environment = "guess_number"
    config.episode = ConfigDict(
        dict(
            arguments=dict(low=1, high=9, guesses=3),
            max_turns=3,
            turn_tokens=1,  # a digit; anything else ends the game
            max_tokens=24,  # three turns with their answers
            stop_texts=tuple("123456789"),
        )
    )
    config.rollout = ConfigDict(
        dict(prompts_per_step=16, group_size=8, max_new_tokens=1, max_prompt_tokens=88, slots=128)
    )
    config.rewards = ConfigDict(dict(environment_reward=1.0))
    config.rewards.numbers = ConfigDict(dict(weight=0.3, function=NUMBERS))
    config.rewards.won = ConfigDict(dict(weight=0.0, function=WON))  # measured only
    config.train = ConfigDict(dict(micro_batch_size=64, completions_per_row=8, old_logprobs="sampler"))
    config.loss = ConfigDict(
        dict(preset="dr_grpo", entropy_coefficient=0.01)  # without it the first three guesses soon are always the same
    )
    config.optimizer = ConfigDict(dict(learning_rate=2e-3, schedule="linear", final_share=0.1))
    config.eval = ConfigDict(dict(name="guess", strict=(WON,)))
    config.checkpoint = ConfigDict(dict(every_steps=0))
    return config
