"""Words by script, and the share of a language among them."""

import pytest

from r1jax.core.errors import UserError
from r1jax.text.language import count_scripts, language_share


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("The answer is forty-two.", {"latin": 5}),
        ("Die Größe fällt", {"latin": 3}),
        ("我们先计算总和", {"han": 4}),  # seven characters
        ("たのしい日本", {"kana": 2, "han": 1}),
        ("давайте посчитаем", {"cyrillic": 2}),
        ("답은 여섯", {"hangul": 2}),
        ("x + y = 12.5 and \\frac{a}{b}", {"latin": 2}),  # `and`, and the a of the fraction, which is a word too
        ("<think> so </think><|im_end|>", {"latin": 1}),
        ("see ```python\nprint(total)\n``` done", {"latin": 2}),
        ("3 + 4 = 7", {}),
        ("", {}),
    ],
)
def test_words_by_script(text: str, counts: dict[str, int]):
    assert count_scripts(text) == counts


def test_the_share_of_a_language():
    mixed = "First we add 这里是十五"  # three words, and five characters
    assert language_share(mixed, "en") == pytest.approx(3 / 6)
    assert language_share(mixed, "zh") == pytest.approx(3 / 6)
    assert language_share("漢字とかな", "ja") == 1.0
    assert language_share("12 + 3", "en") is None
    with pytest.raises(UserError, match="language must be one of en, .*, got 'klingon'"):
        language_share("a", "klingon")


def test_long_hostile_texts_take_linear_time():
    for part in ("```", "<|", "\\a", "<a", "a我"):
        language_share(part * 100_000, "en")
