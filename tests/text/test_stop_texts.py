"""Stop texts in a text that arrives in pieces, against the whole text cut at once."""

import random

import pytest

from r1jax.text.stop_texts import StopTexts


@pytest.mark.parametrize("stops", [[], ["b"], ["ab", "ba"], ["aab", "b"], ["abab"], ["aba", "bab"]])
def test_pieces_give_what_the_whole_text_gives(stops: list[str]) -> None:
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choice("aab c") for _ in range(draw.randint(0, 12)))
        places = [place for stop in stops if (place := text.find(stop)) >= 0]
        expected, found, rest, cut = text[: min(places)] if places else text, "", text, StopTexts(stops)
        while rest:
            size = draw.randint(1, 3)
            found, rest = found + cut.push(rest[:size]), rest[size:]
            assert expected.startswith(found)  # nothing is given out that a stop would cut
        assert cut.is_found == bool(places)
        assert found + cut.end() == expected


def test_only_what_may_begin_a_stop_is_kept_back() -> None:
    cut = StopTexts(["\n\nQ:"])
    assert cut.push("an answer\n") == "an answer" and cut.push("more") == "\nmore" and cut.end() == ""
