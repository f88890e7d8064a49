"""Text that arrives token by token: nothing is lost, no character is torn, and tags may be cut anywhere."""

from pathlib import Path

import pytest

from r1jax.text.increments import TextIncrements, ThoughtSplitter
from r1jax.text.tokenizer import Tokenizer

TEXT = "Zwölf 🙂👍🏽 und 十二: x² = 144.\n\n  Ende"


@pytest.fixture(scope="module", params=["bytes", "demo model"])
def tokenizer(request: pytest.FixtureRequest, demo_model: Path) -> Tokenizer:
    found = Tokenizer.of_bytes() if request.param == "bytes" else Tokenizer.from_path(demo_model)
    assert found is not None
    return found


def test_the_pieces_are_the_text_and_no_character_is_torn(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert len(ids) > 12
    increments = TextIncrements(tokenizer)
    pieces = [increments.push(token) for token in ids]
    assert "".join(pieces) == tokenizer.decode(ids) == TEXT and increments.end() == ""
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_incomplete_character_is_shown_at_the_end() -> None:
    tokenizer = Tokenizer.of_bytes()
    increments = TextIncrements(tokenizer)
    assert [increments.push(token) for token in tokenizer.encode("a十")[:-1]] == ["a", "", ""]
    assert increments.end() == "\ufffd"


@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        (
            "<think> 2 < 3 </think> 5 <answer> 5 </answer>",
            False,
            [(" 2 < 3 ", True), (" 5 <answer> 5 </answer>", False)],
        ),
        ("so </think>12", True, [("so ", True), ("12", False)]),
        ("plain <thin air", False, [("plain <thin air", False)]),
        ("a <think>b", False, [("a ", False), ("b", True)]),
        ("ends in <th", False, [("ends in <th", False)]),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_thoughts_are_told_apart_wherever_the_pieces_end(
    text: str, is_open: bool, expected: list[tuple[str, bool]], size: int
) -> None:
    splitter = ThoughtSplitter(is_open=is_open)
    pieces = [p for i in range(0, len(text), size) for p in splitter.push(text[i : i + size])] + list(splitter.end())
    joined: list[tuple[str, bool]] = []
    for piece, thought in pieces:
        if joined and joined[-1][1] == thought:
            joined[-1] = (joined[-1][0] + piece, thought)
        else:
            joined.append((piece, thought))
    assert joined == expected
