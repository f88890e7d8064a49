"""Environments in the form of TRL's documentation of `environment_factory`: a counter, an echo and a word game, the
latter two over clients that a hub has (`echo_env`, `textarena_env`; stand-ins in test_trl.py).
"""

from echo_env import EchoEnv
from echo_env.models import EchoAction
from textarena_env import TextArenaAction, TextArenaEnv


class IncrementEnv:
    def reset(self, **kwargs) -> str | None:
        self.counter = 0

    def increment(self, step: int) -> int:
        """
        Adds a step to the counter.

        Args:
            step: The amount to add.

        Returns:
            The counter's new value.
        """
        self.counter += step
        return self.counter


class EchoToolEnv:
    def __init__(self):
        self.env = EchoEnv(base_url="https://echo.invalid")
        self.reward = 0.0

    def reset(self, **kwargs) -> str | None:
        self.reward = 0.0
        return None

    def echo(self, message: str) -> str:
        """
        Sends a message, which comes back.

        Args:
            message: The message.

        Returns:
            The same message.
        """
        result = self.env.step(EchoAction(message=message))
        self.reward = result.observation.reward
        return result.observation.echoed_message


class WordleEnv:
    def __init__(self):
        self.client = TextArenaEnv(base_url="https://wordle.invalid")

    def reset(self, **kwargs) -> str | None:
        result = self.client.reset()
        self._seen = result.observation.messages[0].content
        self.reward = 0.0
        self.done = False
        return self._seen

    def guess(self, guess: str) -> str:
        """
        Guesses a word.

        Args:
            guess: The word, as '[abcde]'

        Returns:
            What the game says to it.
        """
        if self.done:
            raise ValueError("Game over.")
        result = self.client.step(TextArenaAction(message=guess))
        said = result.observation.messages[0].content
        news, self._seen = said[len(self._seen) :], said
        self.reward = 0.0 if "invalid move" in news else result.reward
        self.done = result.done
        return news


def counter_reward(environments, **kwargs):
    return [float(environment.counter) for environment in environments]


def reward_func(environments, **kwargs) -> list[float]:
    return [environment.reward for environment in environments]
