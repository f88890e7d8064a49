"""Environments written with the package verifiers: a game of several turns, and one with tools."""

import verifiers as vf
from datasets import Dataset


def make_rows(count: int) -> Dataset:
    return Dataset.from_list([{"question": f"Say {n}.", "answer": str(n)} for n in range(count)])


class Counting(vf.MultiTurnEnv):
    """Answers a reply by its length, until `limit` replies were heard."""

    def __init__(self, limit: int, **kwargs):
        super().__init__(**kwargs)
        self.limit = limit

    async def setup_state(self, state):
        state["heard"] = []
        return state

    @vf.stop
    async def heard_enough(self, state) -> bool:
        return len(state["trajectory"]) >= self.limit

    async def env_response(self, messages, state, **kwargs):
        state["heard"].append(len(messages[-1].content))
        return [vf.UserMessage(content=f"{state['heard'][-1]} characters. Go on.")]


async def length_reward(completion, state) -> float:
    return float(sum(len(message.content) for message in completion if message.role == "assistant"))


async def answer_reward(completion, answer) -> float:
    return float(completion[-1].role == "assistant" and answer in completion[-1].content)


async def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: One.
        b: The other.
    """
    if a < 0:
        raise ValueError("no debts")
    return a + b


def load_environment(kind: str = "turns", limit: int = 3, **kwargs) -> vf.Environment:
    rows = make_rows(40)
    if kind == "tools":
        rubric = vf.Rubric(funcs=[answer_reward], weights=[2.0])
        return vf.ToolEnv(tools=[add], max_turns=limit, dataset=rows, rubric=rubric, **kwargs)
    rubric = vf.Rubric(funcs=[length_reward, answer_reward], weights=[1.0, 0.5])
    return Counting(limit, dataset=rows, rubric=rubric, **kwargs)
