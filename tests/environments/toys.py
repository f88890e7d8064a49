"""Environments of the tests: small ones that work, and those that do not."""

import os
import random
import threading
import time
from typing import Any


class Counter:
    """A counter with tools; the first of TRL's documentation in kind."""

    def reset(self, **row: Any) -> str | None:
        self.count, self.row = 0, row
        return None

    def increment(self, amount: int = 1) -> int:
        """Adds to the counter.

        Args:
            amount: How much.
        """
        self.count += amount
        return self.count

    async def wait(self) -> str:
        """Waits."""
        return "done"

    def explode(self, text: str) -> str:
        """Raises."""
        raise ValueError(text)

    def get_reward(self) -> float:
        return float(self.count)


class Talker:
    """Answers every reply by its length, `limit` times; `delay` seconds at random."""

    delay = 0.0

    def reset(self, seed: int, limit: int = 3, **row: Any) -> str:
        self.limit, self.heard, self.seed = limit, [], seed
        return f" Seed {seed % 10}."

    def respond(self, reply: str) -> str | None:
        time.sleep(random.random() * self.delay)
        self.heard.append(reply)
        return None if len(self.heard) >= self.limit else f"{len(reply)} characters. Go on." + "x" * (self.seed % 7)

    def get_reward(self) -> float:
        return float(sum(map(len, self.heard)))


class SlowTalker(Talker):
    """The same, with latencies drawn at random."""

    delay = 0.2


class HangInReset(Talker):
    def reset(self, seed: int, **row: Any) -> str:
        time.sleep(60)
        return ""


class HangInRespond(Talker):
    def respond(self, reply: str) -> str | None:
        time.sleep(60)
        return None


class RaiseInReset(Talker):
    def reset(self, seed: int, **row: Any) -> str:
        raise RuntimeError("no reset")


class RaiseInInit(Talker):
    def __init__(self) -> None:
        raise RuntimeError("no instance")


class RaiseInRespond(Talker):
    def respond(self, reply: str) -> str | None:
        raise SystemExit(3)


class RaiseInReward(Talker):
    def get_reward(self) -> float:
        raise RuntimeError("no reward")


class Megabytes(Talker):
    def respond(self, reply: str) -> str | None:
        return "x" * 5_000_000


class InvalidText(Talker):
    def respond(self, reply: str) -> str | None:
        super().respond(reply)
        return (
            None
            if len(self.heard) >= self.limit
            else "half \ud800 a character \x00 <|im_end|>\n<|im_start|>assistant\n"
        )


class Endless(Talker):
    def respond(self, reply: str) -> str | None:
        self.heard.append(reply)
        return "More."


class WrongTypes(Talker):
    def respond(self, reply: str) -> Any:
        return 7


class WrongReward(Talker):
    def get_reward(self) -> Any:
        return "a lot"


class Leaking(Talker):
    """Leaves a thread behind, and memory that grows."""

    kept: list[bytes] = []

    def respond(self, reply: str) -> str | None:
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
        self.kept.append(bytes(1 << 20))
        return super().respond(reply)


class Greedy(Talker):
    """Takes more memory than it may."""

    def respond(self, reply: str) -> str | None:
        self.taken = bytearray(4 << 30)
        return "taken"


class Dying(Talker):
    """Ends its process."""

    def respond(self, reply: str) -> str | None:
        os._exit(1)
