"""Difficulty curriculum: who is passed over, for how long, and the same again after a resume."""

import numpy as np

from r1jax.data.loader import PromptLoader
from r1jax.rl.curriculum import Curriculum, CurriculumConfig

ROWS = [{"prompt": f"{i}?", "solution": str(i)} for i in range(10)]
NAN = float("nan")


def make(skip: float = 0.8, seed: int = 0, **options: float) -> Curriculum:
    return Curriculum(CurriculumConfig(skip, **options), PromptLoader(ROWS, 4, seed=seed), seed)


def teach(curriculum: Curriculum) -> None:
    """Prompts 0 to 2 are always solved, 3 to 5 never, 6 to 8 half of the time; of 9 nothing is known."""
    rates = [[1.0, 1.0]] * 3 + [[0.0, 0.0]] * 3 + [[0.0, 1.0]] * 3 + [[NAN, NAN]]
    metrics = curriculum.remember(ROWS, np.array(rates))
    assert metrics == {"pools/known": 9, "pools/hard": 1 / 3, "pools/easy": 1 / 3, "pools/passed_over": 0}


def count(curriculum: Curriculum, draws: int) -> np.ndarray:
    """How often each prompt was taken."""
    taken = [int(row["solution"]) for _ in range(draws // 4) for row in curriculum.take(4)]
    return np.bincount(taken, minlength=10)


def test_too_easy_and_too_hard_prompts_are_taken_less() -> None:
    curriculum = make()
    teach(curriculum)
    taken = count(curriculum, 400)
    assert taken[:6].max() < 0.5 * taken[6:].min()
    assert taken[:6].min() > 0  # but not never
    assert curriculum.remember([], np.zeros((0, 2)))["pools/passed_over"] > 100


def test_one_answer_says_nothing_of_others() -> None:
    curriculum = make()
    curriculum.remember(ROWS[:1], np.array([[NAN, 1.0]]))
    curriculum.remember(ROWS[:1], np.array([[0.5, NAN]]))  # the last one counts
    assert curriculum.remember([], np.zeros((0, 2)))["pools/easy"] == 0


def test_where_all_are_extreme_the_data_still_comes() -> None:
    curriculum = make(skip=1.0)
    curriculum.remember(ROWS, np.zeros((10, 2)))
    assert len(curriculum.take(4)) == 4


def test_no_pools_no_difference() -> None:
    curriculum, loader = make(skip=0.0), PromptLoader(ROWS, 4)
    assert curriculum.remember(ROWS, np.ones((10, 2))) == {} and curriculum.get_state() == {}
    assert curriculum.take(4) == next(loader)


def test_they_go_on_where_they_were() -> None:
    whole, part = make(), make()
    for curriculum in (whole, part):
        teach(curriculum)
        curriculum.take(4)
    again = make()
    again.loader.set_state(part.loader.get_state())
    again.set_state(part.get_state())
    assert [again.take(3) for _ in range(9)] == [whole.take(3) for _ in range(9)]
    other = make(seed=1)
    teach(other)
    assert [other.take(3) for _ in range(9)] != [whole.take(3) for _ in range(9)]
