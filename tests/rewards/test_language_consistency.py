"""The language-consistency reward: shares, targets by argument and by column, and what has none."""

import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.rewards import language_consistency_reward, load_rewards, score

ENGLISH, CHINESE, KOREAN = "First we add the two numbers.", "我们先把两个数相加", "먼저 두 수를 더합니다"


def test_the_share_of_words_in_the_target_language():
    assert language_consistency_reward([ENGLISH, CHINESE, KOREAN], language="en") == [1.0, 0.0, 0.0]
    assert language_consistency_reward([ENGLISH, CHINESE, KOREAN], "zh", prompts=["?"] * 3) == [0.0, 1.0, 0.0]
    chat = [{"role": "assistant", "content": f"<think>\n{ENGLISH} 그래서\n</think> $x + 1 = 7$"}]
    assert language_consistency_reward([chat], "en") == pytest.approx([6 / 7])
    assert language_consistency_reward([ENGLISH, KOREAN, CHINESE], ["en", "ko", None]) == [1.0, 1.0, None]
    assert language_consistency_reward(["3 + 4 = 7", ""], "en") == [None, None]


def test_by_config_and_by_column():
    def total(spec, **columns):
        given = {"prompts": ["?"] * 2, "completions": [ENGLISH, KOREAN], "completion_ids": [[1]] * 2}
        return score(load_rewards({"language_consistency_reward": spec}), columns=columns, **given).total

    np.testing.assert_allclose(total({"weight": 0.5, "language": "ko"}, language=["en", "en"]), [0.0, 0.5])
    np.testing.assert_allclose(total(2.0, language=["en", "en"]), [2.0, 0.0])
    with pytest.raises(UserError, match="needs a data column 'language'"):
        total(1.0)
    with pytest.raises(UserError, match="language must be one of en, .*got 'klingon'"):
        total({"language": "klingon"})
