"""open-r1's rewards for steps and against repetition, on its own cases."""

import os

import jieba
import pytest

from r1jax.rewards import prose
from r1jax.rewards.prose import get_repetition_penalty_reward, reasoning_steps_reward


def as_messages(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Step 1: First step\nStep 2: Second step\nStep 3: Third step", 1.0),
        ("First, we do this.\nSecond, we do that.\nFinally, we conclude.", 1.0),
        ("Step 1: Only step", 1 / 3),
        ("First, we do this.\nFinally, we conclude.", 2 / 3),
        ("Just plain text without any clear steps", 0.0),
        ("1. a\n2. b\n3. c", 1 / 3),
        ("a\n- b\n* c", 2 / 3),
        ("- a\n- b", 1 / 3),
        ("Step 1: First, Next, Finally, Second,", 1.0),
        ("", 0.0),
    ],
)
def test_reasoning_steps_reward(text, value):
    assert reasoning_steps_reward([text, as_messages(text)], solution=["x", "x"]) == pytest.approx([value, value])


@pytest.mark.parametrize(
    ("size", "penalty", "text", "value"),
    [
        (2, -1.0, "this is a test sentence", 0.0),
        (2, -1.0, "this this this this this", -0.75),
        (2, -1.0, "this is a this is a test", -1 / 3),
        (3, -0.5, "test test test test", -0.25),
        (3, -2.0, "this is a this is a test", -0.4),
        (2, -1.0, "this IS a This is a", -0.4),
        (3, -1.0, "one two", 0.0),
        (3, -1.0, "one two three", 0.0),
        (3, -1.0, "word word word word", -0.5),
        (3, -1.0, "A B C A B C", -0.25),
        (3, -1.0, "A B C A B C E F G A B C A B C", -5 / 13),
        (3, -1.0, "", 0.0),
    ],
)
def test_repetition_penalty_reward(size, penalty, text, value):
    reward = get_repetition_penalty_reward(ngram_size=size, max_penalty=penalty)
    assert reward.__name__ == "repetition_penalty_reward"
    assert reward([text, as_messages(text)], solution=["x", "x"]) == pytest.approx([value, value])


def test_chinese_words_are_jiebas():
    pytest.importorskip("jieba")
    reward = get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0, language="zh")
    assert reward([as_messages("这个这个这个这个这个"), ""]) == [-0.75, 0.0]


def test_mistakes():
    with pytest.raises(ValueError, match=r"max_penalty 1.5 should not be positive"):
        get_repetition_penalty_reward(ngram_size=2, max_penalty=1.5)
    with pytest.raises(ValueError, match="language must be one of en, zh, got 'ko'"):
        get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0, language="ko")


def test_jiebas_cache_is_in_a_private_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = prose._make_private_folder()
    assert folder == str(tmp_path / "r1jax" / "jieba") and os.stat(folder).st_mode & 0o777 == 0o700
    os.chmod(folder, 0o777)  # as another user's would be
    other = prose._make_private_folder()
    assert other != folder and os.stat(other).st_mode & 0o777 == 0o700
    os.rmdir(other)
    assert jieba.dt.tmp_dir is None or os.stat(jieba.dt.tmp_dir).st_mode & 0o022 == 0
