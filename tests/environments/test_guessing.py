"""The two guessing games, played."""

import pytest

from r1jax.environments.guessing import NumberGame, WordGame, mark_letters


def test_a_number_is_found_by_halves() -> None:
    game = NumberGame()
    assert "from 1 to 20" in game.reset(seed=3)
    low, high, answer = 1, 20, ""
    while answer is not None:
        guess = (low + high) // 2
        answer = game.respond(f"Perhaps {guess}")
        low, high = (guess + 1, high) if answer == "Higher." else (low, guess - 1)
    assert game.won and game.get_reward() == 1 - 0.5 * (game.turns - 1) / 7


def test_a_number_game_ends_after_its_guesses() -> None:
    game = NumberGame()
    game.reset(target=5, guesses=3)
    assert [game.respond(text) for text in ("no idea", "9 or 4", "2")] == [
        "I see no number. Guess a number.",
        "Higher.",
        None,
    ]
    assert game.get_reward() == 0.0


def test_the_same_seed_is_the_same_game() -> None:
    games = [NumberGame() for _ in range(2)]
    for game in games:
        game.reset(seed=11, high=1000)
    assert games[0].target == games[1].target


@pytest.mark.parametrize(
    ("guess", "word", "marks"), [("apple", "apple", "+++++"), ("llama", "label", "+??--"), ("eerie", "there", "?-?-+")]
)
def test_letters_are_marked_as_often_as_they_occur(guess: str, word: str, marks: str) -> None:
    assert mark_letters(guess, word) == marks


def test_a_word_game_counts_guesses() -> None:
    game = WordGame()
    game.reset(word="beach", guesses=2)
    assert game.guess("bread") == "b r e a d\n+ - ? ? -"
    with pytest.raises(ValueError, match="a guess has 5 letters"):
        game.guess("no")
    assert game.guess("BEACH ").endswith("You found it.") and game.get_reward() == 1.0
    with pytest.raises(ValueError, match="the game is over"):
        game.guess("beach")
