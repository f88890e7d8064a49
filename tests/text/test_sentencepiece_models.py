"""Sentencepiece vocabularies give sentencepiece's own ids and texts, whatever options they were trained with."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from r1jax.core.errors import UserError
from r1jax.text.sentencepiece_models import read_pieces
from r1jax.text.sentencepiece_training import train_vocabulary
from r1jax.text.tokenizer import Tokenizer

GOLDEN = json.loads(gzip.decompress((Path(__file__).parents[1] / "goldens/tokenizer.json.gz").read_bytes()))
# Texts of many scripts; without those that spell a special token, which sentencepiece does not read, and without NUL,
# at which its trainer stops.
TEXTS = [text for text in GOLDEN["texts"] if "<|" not in text and "<s>" not in text and "\0" not in text]
LLAMA2 = {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "llama2": {**LLAMA2, "byte_fallback": True, "split_digits": True, "allow_whitespace_only_pieces": True},
    "no prefix": {**LLAMA2, "byte_fallback": True, "add_dummy_prefix": False},
    "no bytes": {**LLAMA2, "character_coverage": 0.98},
    "unigram": {"model_type": "unigram", "normalization_rule_name": "identity", "byte_fallback": True},
    "t5": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc"},
    "marks": {
        **LLAMA2,
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["<think>", "@@"],
        "control_symbols": ["<turn>"],
    },
    "spaces": {**LLAMA2, "byte_fallback": True, "user_defined_symbols": ["▁▁", "▁▁▁", "▁▁▁▁"]},
}


def train(folder: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    """Writes folder/tokenizer.model and returns sentencepiece's own reading of it."""
    model = io.BytesIO()
    lines = [line for text in TEXTS for line in text.splitlines() if line.strip()]
    settings = {"vocab_size": 1500, "hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **settings)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize("name", OPTIONS)
def test_ids_and_texts_are_those_of_sentencepiece(tmp_path: Path, name: str) -> None:
    theirs = train(tmp_path, **OPTIONS[name])
    ours = Tokenizer.from_path(tmp_path)
    assert ours is not None and ours.vocab_size == theirs.get_piece_size()
    assert (ours.bos_id, ours.eos_ids) == (theirs.bos_id(), (theirs.eos_id(),)) and ours.pad_id not in ours.eos_ids
    wrong = [text for text in TEXTS if ours.encode(text) != theirs.encode(text)]
    # The tokenizers package loses a second combining mark where sentencepiece's normalization is applied.
    known = [text for text in TEXTS if "\u1e9b\u0323" in text] if name == "t5" else []
    assert len(TEXTS) > 300 and wrong == known
    if "byte_fallback" in OPTIONS[name]:  # else unknown characters come back as ⁇ or not at all
        assert [text for text in TEXTS if ours.decode(ours.encode(text)) != theirs.decode(theirs.encode(text))] == []
    assert ours.encode("hi", add_special=True) == [theirs.bos_id(), *theirs.encode("hi")]


def test_a_saved_folder_is_the_same_tokenizer(tmp_path: Path) -> None:
    train(tmp_path, **OPTIONS["llama2"])
    ours = Tokenizer.from_folder(tmp_path)
    ours.save(tmp_path / "saved")
    loaded = Tokenizer.from_folder(tmp_path / "saved")
    assert all(loaded.encode(text, add_special=True) == ours.encode(text, add_special=True) for text in TEXTS)
    assert (loaded.bos_id, loaded.eos_ids, loaded.specials) == (ours.bos_id, ours.eos_ids, ours.specials)


def test_a_text_that_follows_others_gets_no_space(tmp_path: Path) -> None:
    theirs = train(tmp_path, **OPTIONS["llama2"])
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.encode("the") == theirs.encode("the") != ours.encode_more("the")
    for text in ("the 12", " the", "", "我\n"):
        assert ours.decode([*ours.encode("What is"), *ours.encode_more(text)]) == f"What is{text}"


def test_special_tokens_may_be_spelt_and_added(tmp_path: Path) -> None:
    theirs = train(tmp_path, **OPTIONS["marks"])
    size = theirs.get_piece_size()
    config = {"add_bos_token": False, "added_tokens_decoder": {str(size): {"content": "<end>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<more>": size + 1}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, size]}))
    ours = Tokenizer.from_folder(tmp_path)
    turn, think = theirs.piece_to_id("<turn>"), theirs.piece_to_id("<think>")
    assert ours.encode("<turn><think><end><more>", add_special=True) == [turn, think, size, size + 1]
    assert ours.decode([turn, think, size]) == "<think>" and ours.eos_ids == (2, size)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<more>": size + 7}))
    with pytest.raises(UserError, match=f"added token '<more>' must have id {size + 7}, got {size + 1}"):
        Tokenizer.from_folder(tmp_path)


def test_the_vocabulary_of_a_gguf_header(tmp_path: Path) -> None:
    theirs = train(tmp_path, **OPTIONS["llama2"])
    pieces, _ = read_pieces(tmp_path / "tokenizer.model")
    header = {"model": "llama", "tokens": pieces.texts, "scores": pieces.scores, "token_type": pieces.kinds}
    header |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    ours = Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in header.items()})
    assert all(ours.encode(text, add_special=True) == [1, *theirs.encode(text)] for text in TEXTS)
    assert (ours.bos_id, ours.eos_ids) == (1, (2,))


def test_broken_and_other_models_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"tokenizer\.model: not a sentencepiece model"):
        Tokenizer.from_folder(tmp_path)
    train(tmp_path, model_type="char")
    with pytest.raises(UserError, match="of kind unigram or BPE"):
        Tokenizer.from_folder(tmp_path)


# --- Training ---


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_trained_vocabulary_spells_every_text(tmp_path: Path, kind: Any) -> None:
    template = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    trained = train_vocabulary(TEXTS, 1300, tmp_path, specials=["<|turn|>"], template=template, kind=kind)
    assert trained.vocab_size <= 1300 and (trained.pad_id, trained.bos_id, trained.eos_ids) == (0, 1, (2,))
    assert trained.specials == {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<|turn|>": 4}
    assert [text for text in GOLDEN["texts"] if trained.decode(trained.encode(text)) != text] == []
    assert len(trained.encode("1234")) == 4 and trained.encode(" 12") == trained.encode_more(" 12")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert all(trained.encode(text) == theirs.encode(text) for text in TEXTS)
    again = train_vocabulary(TEXTS, 1300, tmp_path / "again", specials=["<|turn|>"], template=template, kind=kind)
    assert (tmp_path / "again/tokenizer.model").read_bytes() == (tmp_path / "tokenizer.model").read_bytes()
    assert again.chat_template == Tokenizer.from_folder(tmp_path).chat_template == template


def test_impossible_vocabularies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no vocabulary of 100 ids could be trained"):
        train_vocabulary(TEXTS, 100, tmp_path)
    with pytest.raises(UserError, match="no vocabulary of 700 ids could be trained"):
        train_vocabulary([], 700, tmp_path)


def test_a_vocabulary_of_tiktoken_says_what_to_use(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(UserError, match=r"a vocabulary of tiktoken .* use the model's Hugging Face folder"):
        Tokenizer.from_path(tmp_path)
