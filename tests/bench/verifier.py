"""Answers a second of `accuracy_reward`, by kind, with the pool warm: python tests/bench/verifier.py [N]."""

import random
import sys
import time

from r1jax.rewards.answers import accuracy_reward

THOUGHT = "<think>\nWe add the two numbers and carry the one.\n</think>\n<answer>\n{}\n</answer>"


def make(kind: str, count: int) -> tuple[list[str], list[str]]:
    """`count` replies and golds, half of them right, no two alike."""
    chance = random.Random(0)
    replies, golds = [], []
    for i in range(count):
        a, b, wrong = chance.randrange(10**6), chance.randrange(2, 10**4), i % 2
        if kind == "integers":
            gold, answer = str(a), rf"\boxed{{{a + wrong}}}"
        elif kind == "fractions":
            gold, answer = rf"\frac{{{a}}}{{{b}}}", rf"\boxed{{\frac{{{a + wrong}}}{{{b}}}}}"
        elif kind == "bare numbers":
            gold, answer = str(a), str(a)
        elif kind == "decimals":
            gold, answer = f"{a}.{b}", rf"\boxed{{{a + wrong}.{b}}}"
        else:
            gold, answer = f"${a}x^2 + {b}$", rf"\boxed{{{b} + {a + wrong}x^2}}"
        golds.append(gold)
        replies.append(THOUGHT.format(answer))
    return replies, golds


def main(count: int) -> None:
    """Prints one line a kind."""
    accuracy_reward([r"\boxed{x+1}"] * 64, [f"$x+{i}$" for i in range(64)])
    for kind in ("integers", "fractions", "decimals", "bare numbers", "algebra"):
        replies, golds = make(kind, count)
        begin = time.perf_counter()
        rewards = accuracy_reward(replies, golds)
        seconds = time.perf_counter() - begin
        share = sum(reward == 1.0 for reward in rewards) / count
        print(f"{kind:14}{count / seconds:10.0f} a second   {share:.2f} right")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
