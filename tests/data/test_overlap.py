"""Shared n-grams and near duplicates."""

import json
import pathlib
import random

import numpy as np

from r1jax.data.overlap import BANDS, HASHES, Contamination, NearDuplicates, read_texts, sign, split_words

QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."


def test_words_know_no_case_and_no_punctuation():
    assert split_words("The ducks' 16 Eggs—sold, at $2!") == ["the", "ducks", "16", "eggs", "sold", "at", "2"]
    assert split_words("先加10再减x") == ["先", "加", "10", "再", "减", "x"]


def test_ten_words_in_a_row_contaminate_and_nine_do_not():
    contamination = Contamination([QUESTION], 10)
    words = QUESTION.split()
    assert "Hear this: " + " ".join(words[3:13]).upper() + "!" in contamination
    assert "Hear this: " + " ".join(words[3:12]) + " and more of it" not in contamination
    assert Contamination([QUESTION], 9) and "Hear " + " ".join(words[3:12]) in Contamination([QUESTION], 9)


def test_a_short_benchmark_text_contaminates_only_itself():
    contamination = Contamination(["What is 34 + 25?", ""], 10)
    assert "what is 34 25" in contamination
    assert "What is 34 + 26?" not in contamination and "" not in contamination
    assert "What is 34 + 25? That is 59, since 30 + 20 = 50 and 4 + 5 = 9." not in contamination


def test_texts_of_benchmarks_whatever_their_columns(tmp_path: pathlib.Path):
    rows = [{"question": "a", "n": 3, "meta": {"more": ["b", 1]}}, {"prompt": [{"role": "user", "content": "c"}]}]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_texts([str(tmp_path / "one.jsonl")], key="k") == ["a", "b", "user", "c"]


def find_near_duplicates(texts: list[str], similarity: float) -> list[bool]:
    near = NearDuplicates(similarity)
    return [near.mark(sign(text)) for text in texts]


def test_near_duplicates_are_those_of_a_high_jaccard_similarity():
    generator = random.Random(0)
    texts = [make(generator) for _ in range(40)]
    near = [change(text, 3, generator) for text in texts[:20]]  # about nine of 198 shingles differ: 0.91
    far = [change(text, 60, generator) for text in texts[20:]]  # most shingles differ
    marked = find_near_duplicates([*texts, *near, *far], 0.8)
    assert marked == [False] * 40 + [True] * 20 + [False] * 20


def test_equal_and_empty_texts():
    assert find_near_duplicates(["a b c d", "A b, c d!", "", "", "x"], 0.9) == [False, True, False, True, False]


def test_the_table_of_bands_finds_what_a_dictionary_finds():
    """Few values, so that many bands are equal and chains are long, and enough texts for the table to grow."""
    generator = np.random.default_rng(0)
    signatures = generator.integers(0, 5, (300, HASHES), dtype=np.uint32)
    near, expected, tables = NearDuplicates(0.3), [], [dict[bytes, list[int]]() for _ in range(BANDS)]
    for number, signature in enumerate(signatures):
        keys = [band.tobytes() for band in signature.reshape(BANDS, -1)]
        likely = {other for table, key in zip(tables, keys, strict=True) for other in table.get(key, ())}
        expected.append(any((signatures[other] == signature).mean() >= 0.3 for other in likely))
        if not expected[-1]:
            for table, key in zip(tables, keys, strict=True):
                table.setdefault(key, []).append(number)
    assert [near.mark(signature) for signature in signatures] == expected and 0 < sum(expected) < 100


def make(generator: random.Random) -> str:
    return " ".join(str(generator.randrange(5000)) for _ in range(200))


def change(text: str, words: int, generator: random.Random) -> str:
    parts = text.split()
    for place in generator.sample(range(len(parts)), words):
        parts[place] = "other"
    return " ".join(parts)
