"""Sections for a file of problems: what is asked, paid and measured follows the named reward."""

import pytest

from r1jax.runs.problem_file import describe_problems


@pytest.mark.parametrize(
    ("reward", "template", "rewards", "scores"),
    [
        ("number", "chat", {"number_reward": 1.0}, {"strict": ("number_reward",), "format": ""}),
        ("answer", "r1", {"answer_reward": 1.0}, {"strict": ("answer_reward",), "format": "r1_format_reward"}),
        (
            "code",
            "chat",
            {"code_reward": 1.0},
            {"strict": ("code_reward",), "format": "", "lenient": "code_reward"},
        ),
        (
            "mine:shout",
            "chat",
            {"shout": {"weight": 1.0, "function": "mine:shout"}},
            {"strict": ("mine:shout",), "format": "", "lenient": "mine:shout"},
        ),
    ],
)
def test_sections_follow_the_reward(reward: str, template: str, rewards: dict, scores: dict) -> None:
    problems = describe_problems("rows.jsonl", reward, held_out=7)
    assert problems.data == {"source": "file", "path": "rows.jsonl", "eval_problems": 7, "template": template}
    assert problems.rewards == rewards and problems.eval == scores
