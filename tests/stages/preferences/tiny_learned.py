"""Runs of seconds on learned rewards for the tests: GRPO, or a collection of preferences.

python -m r1jax.train --config=tests/stages/preferences/tiny_learned.py:scores=REWARD_MODEL --config.model.name=FOLDER

Arguments after a colon:

    stage      grpo (default) or rejection_sampling
    scores     MODEL whose scores are the reward; without, the sampled model ranks pairs
    reference  MODEL before its training by DPO, for its implied reward
"""

from ml_collections import ConfigDict

from r1jax.core.config import parse_args
from tests.stages import tiny_collection, tiny_grpo

RANKS = {"at_once": 2, "judgements": 2, "as_text": True, "template": "{question}\n{responses}\nRanking:"}


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, stage="grpo", scores="", reference="")
    learned = {"model": args.scores, "part": "reply", "reference": args.reference, "beta": 0.5}
    paid = {"reward_model": learned} if args.scores else {"self_rank_reward": RANKS}
    if args.stage == "grpo":
        config = tiny_grpo.get_config()
        letters = {"weight": 0.0, "function": "tests.stages.letters:letters_reward"}
        config.rewards = ConfigDict({**paid, "letters": letters})
        config.data.eval_problems, config.log.tensorboard = 0, False
        return config
    config = tiny_collection.get_config()
    config.rewards = ConfigDict(paid)
    config.generate.prompts, config.generate.slots, config.generate.max_new_tokens = 16, 32, 64
    config.judge = ConfigDict({"max_new_tokens": 4})
    config.filters = ConfigDict({"min_reward": -99.0})
    config.pairs = ConfigDict({"per_prompt": 1})
    return config
