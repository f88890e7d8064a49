"""Sections of a config for a file of problems, by the reward that its rows are for.

Configs that take any file share them: rows have a `prompt` and the columns that the reward reads.
"""

from typing import Any, NamedTuple

# short name -> registered reward
SHORT_NAMES = {"answer": "answer_reward", "number": "number_reward", "code": "code_reward"}
SOLVED = ("answer", "number")  # whose rows have a solution, to which the last number can be compared


class ProblemFile(NamedTuple):
    """Values of the sections `data`, `rewards` and `eval`."""

    data: dict[str, Any]
    rewards: dict[str, Any]
    eval: dict[str, Any]


def describe_problems(path: str, reward: str, *, held_out: int = 100) -> ProblemFile:
    """Sections for the problems of a file or data set.

    reward: answer (in tags or a box, asked in R1-Zero's template), number (the last one), code (programs pass their
    tests), a registered name, or module:function. held_out: problems asked before and after training.
    """
    name = SHORT_NAMES.get(reward, reward)
    in_tags = reward == "answer"
    scores: dict[str, Any] = {"strict": (name,), "format": "r1_format_reward" if in_tags else ""}
    if reward not in SOLVED:
        scores["lenient"] = name
    return ProblemFile(
        data={"source": "file", "path": path, "eval_problems": held_out, "template": "r1" if in_tags else "chat"},
        rewards={name.rpartition(":")[2]: {"weight": 1.0, "function": name} if ":" in name else 1.0},
        eval=scores,
    )
