"""Rows of preferences in the forms of known sets, as the sequences that are trained."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.data.corpus import CorpusConfig, SourceConfig
from r1jax.data.preferences.pair_corpus import load_pairs
from r1jax.data.preferences.pair_loader import PairLoader
from r1jax.data.preferences.pairs import Pair, add_mismatched, make_pair_encoder, read_margin, read_pair
from r1jax.data.sequences import PackingConfig
from r1jax.data.sources import SourceRow
from r1jax.text.tokenizer import Tokenizer

TURNS = (("user", "Q"), ("assistant", "y"), ("assistant", "n"))
USER, YES, NO = ({"role": role, "content": text} for role, text in TURNS)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: pathlib.Path) -> Tokenizer:
    return Tokenizer.from_folder(tiny_model)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Q", "chosen": "y", "rejected": "n"}, ("Q", "y", "n")),
        ({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, ([USER], [YES], [NO])),
        ({"prompt": "Q", "chosen": [YES], "rejected": [NO]}, ([USER], [YES], [NO])),
        ({"prompt": "Q", "chosen": [USER, YES], "rejected": [USER, NO]}, ([USER], [YES], [NO])),  # UltraFeedback
        ({"chosen": [USER, YES, USER, YES], "rejected": [USER, YES, USER, NO]}, ([USER, YES, USER], [YES], [NO])),
        (
            {"chosen": "\n\nHuman: Q\n\nAssistant: yes", "rejected": "\n\nHuman: Q\n\nAssistant: yawn"},  # HH
            ("\n\nHuman: Q\n\nAssistant:", " yes", " yawn"),
        ),
    ],
)
def test_a_row_is_a_prompt_and_two_completions(row: dict[str, Any], expected: tuple) -> None:
    assert read_pair(row) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "chosen": "y"}, "needs prompt, chosen and rejected; got prompt, chosen"),
        ({"prompt": "Q", "chosen": "y", "rejected": [NO]}, "must both be texts or both be messages"),
        ({"chosen": "y", "rejected": "n"}, "needs texts that share a beginning up to 'Assistant:'"),
        ({"chosen": [YES], "rejected": [NO]}, "needs messages that begin with the same ones"),
        ({"prompt": "Q", "chosen": [{"content": "y"}], "rejected": [NO]}, "messages must be a list"),
    ],
)
def test_a_row_that_is_none_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_pair(row)


@pytest.mark.parametrize(
    ("row", "margin"),
    [
        ({}, 0.0),
        ({"margin": 2}, 2.0),
        ({"score_chosen": 8.5, "score_rejected": 6}, 2.5),
        ({"chosen_score": 1, "rejected_score": 3, "margin": None}, -2.0),
        ({"chosen-rating": 5, "rejected-rating": 1}, 4.0),
        ({"score_chosen": 8.5}, 0.0),
    ],
)
def test_a_margin_is_given_or_the_difference_of_scores(row: dict[str, Any], margin: float) -> None:
    assert read_margin(row) == margin


@pytest.mark.parametrize("value", ["much", float("nan"), [1]])
def test_a_margin_that_is_no_number_is_named(value: Any) -> None:
    with pytest.raises(UserError, match="a margin must be"):
        read_margin({"margin": value})


def encode(tokenizer: Tokenizer, row: dict[str, Any], longest: int = 99, **options: Any) -> list[Pair]:
    source = SourceConfig("x", template=options.pop("template", "plain"), columns=options.pop("columns", {}))
    options = {"truncation": "right", **options}
    return make_pair_encoder(source, tokenizer, longest=longest, **options)(SourceRow("x:1", row))


def test_a_pair_is_two_sequences_with_loss_on_their_completions(tokenizer: Tokenizer) -> None:
    row = {"question": "12:", "good": "ab", "bad": "c"}
    (pair,) = encode(tokenizer, row, columns={"prompt": "question", "chosen": "good", "rejected": "bad"})
    chosen, rejected = pair.cut()
    ids = lambda text: tokenizer.encode(text)
    end = tokenizer.eos_ids[0]
    np.testing.assert_array_equal(chosen.tokens, [*ids("12:"), *ids("ab")])
    np.testing.assert_array_equal(chosen.targets, [*ids("12:ab")[1:], end])
    np.testing.assert_array_equal(chosen.weights, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(rejected.weights, [0, 0, 1, 1])
    (whole,) = encode(tokenizer, {"prompt": "12:", "chosen": "ab", "rejected": "c"}, whole=True)
    np.testing.assert_array_equal(whole.cut()[0].tokens, [*ids("12:ab"), end])  # scored at its end token


def test_messages_are_shown_by_the_template(tokenizer: Tokenizer) -> None:
    row = {"prompt": "Q", "chosen": [USER, YES], "rejected": [USER, NO]}
    (pair,) = encode(tokenizer, row)
    chosen, rejected = pair.cut()
    assert (chosen.weights > 0).sum() == (rejected.weights > 0).sum() == 2  # the word and the end of the turn
    (same,) = encode(tokenizer, {"prompt": "Q", "chosen": "y", "rejected": "n"}, template="chat")
    np.testing.assert_array_equal(same.tokens, pair.tokens)


def test_long_pairs_are_cut_or_dropped_and_equal_ones_left_out(tokenizer: Tokenizer) -> None:
    row = {"prompt": "1:", "chosen": "abcdefgh", "rejected": "x"}
    assert encode(tokenizer, row, longest=5)[0].sizes == (5, 3)
    assert encode(tokenizer, row, longest=5, truncation="drop") == []
    assert encode(tokenizer, {"prompt": "1:", "chosen": "x", "rejected": "x"}) == []


def test_a_mismatched_sequence_is_the_prompt_with_the_next_pairs_chosen_text(tokenizer: Tokenizer) -> None:
    rows = [{"prompt": "1:", "chosen": "ab", "rejected": "x"}, {"prompt": "22:", "chosen": "cde", "rejected": "y"}]
    pairs = [pair for row in rows for pair in encode(tokenizer, row)]
    first, last = (pair.cut()[2] for pair in add_mismatched(pairs, 99))
    end = tokenizer.eos_ids[0]
    np.testing.assert_array_equal([*first.tokens, first.targets[-1]], [*tokenizer.encode("1:cde"), end])
    np.testing.assert_array_equal([*last.tokens, last.targets[-1]], [*tokenizer.encode("22:ab"), end])
    np.testing.assert_array_equal(first.weights, [0, 1, 1, 1, 1])


@pytest.fixture(scope="module")
def corpus(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    random = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    words = lambda letters: "".join(random.choice(list(letters), random.integers(1, 9)))
    rows = [
        {"prompt": f"{n}:", "chosen": words("abc"), "rejected": words("xyz"), "margin": float(n)} for n in range(40)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = CorpusConfig({"x": SourceConfig(str(file), template="plain")}, length=48, eval_rows=8)
    return load_pairs(config, tokenizer)


@pytest.mark.parametrize("sequences", [2, 3])
def test_every_pair_lies_in_one_row_with_its_numbers(corpus: Any, sequences: int) -> None:
    pairs = corpus.train[0] if sequences == 2 else add_mismatched(corpus.train[0], 16)
    assert len(pairs) == 32 and len(corpus.held_out) == 8
    references = np.random.default_rng(1).normal(size=(32, sequences)).astype(np.float32)
    packing = PackingConfig(length=48, bins=8)
    options = {"sequences": sequences, "references": references}
    loader = PairLoader([pairs], 4, packing, epochs=1, **options)
    seen = []
    for batch in loader:
        for row, place in zip(*np.nonzero(batch["pairs"] >= 0), strict=True):
            number = batch["pairs"][row, place]
            seen.append(int(number))
            for unit, example in enumerate(pairs[number].cut()):
                inside = batch["segments"][row] == sequences * place + unit + 1
                for name in ("tokens", "targets", "weights"):
                    np.testing.assert_array_equal(batch[name][row, inside], getattr(example, name))
                np.testing.assert_array_equal(batch["positions"][row, inside], np.arange(len(example.tokens)))
            assert batch["margins"][row, place] == pairs[number].margin and batch["shares"][row, place] == 1
            np.testing.assert_array_equal(batch["reference"][row, place], references[number])
        assert (batch["shares"] == (batch["pairs"] >= 0)).all()
        assert batch["segments"].max() <= sequences * batch["shares"].shape[1]
    assert sorted(seen) == list(range(32))


def test_processes_count_the_pairs_of_others_and_feed_their_own(corpus: Any) -> None:
    mine = np.array([True, False, True, False])
    make = lambda mine: next(PairLoader(corpus.train, 4, PackingConfig(length=48, bins=8), mine=mine))
    whole, part = make(None), make(mine)
    for name in ("segments", "positions", "pairs", "margins", "shares"):
        np.testing.assert_array_equal(part[name], whole[name])
    np.testing.assert_array_equal(part["tokens"][mine], whole["tokens"][mine])
    assert (part["tokens"][~mine] == 0).all()


def test_a_state_belongs_to_its_margins(corpus: Any) -> None:
    loader = PairLoader(corpus.train, 4, PackingConfig(length=48, bins=8))
    other = PairLoader([[pair._replace(margin=9.0) for pair in corpus.train[0]]], 4, PackingConfig(length=48, bins=8))
    with pytest.raises(UserError, match="the checkpoint's data has pairs="):
        other.set_state(loader.get_state())
