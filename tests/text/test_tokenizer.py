"""Ids against transformers' on hundreds of texts (tests/goldens/make_texts.py); rules of BOS, stops and padding."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers

from r1jax.core.errors import UserError
from r1jax.core.tensors.tensor_reader import open_tensors
from r1jax.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(gzip.decompress((ROOT / "tests/goldens/tokenizer.json.gz").read_bytes()))


@pytest.fixture(scope="module")
def metadata(demo_model: Path) -> dict:
    return open_tensors(demo_model).metadata


@pytest.fixture(scope="module")
def smollm(metadata: dict) -> Tokenizer:
    return Tokenizer.from_gguf(metadata)


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2"])
def test_gguf_vocabulary_gives_the_ids_of_transformers(golden: dict, metadata: dict, pre: str) -> None:
    tokenizer = Tokenizer.from_gguf({**metadata, "tokenizer.ggml.pre": pre})
    wrong = [
        text for text, ids in zip(golden["texts"], golden["ids"][pre], strict=True) if tokenizer.encode(text) != ids
    ]
    assert len(golden["texts"]) > 400 and wrong == []


def test_decoding_gives_the_texts_of_transformers(golden: dict, smollm: Tokenizer) -> None:
    for index, (text, ids) in enumerate(zip(golden["texts"], golden["ids"]["smollm"], strict=True)):
        assert smollm.decode(ids) == golden["decoded"].get(str(index), text)
        assert smollm.decode(ids, skip_special=False) == text


def test_transformers_reading_of_the_gguf_differs_only_in_spaces_before_digits(golden: dict, smollm: Tokenizer) -> None:
    differing = golden["read_from_gguf"]
    assert 0 < len(differing) < len(golden["texts"]) / 4
    for index, ids in differing.items():
        text = golden["texts"][int(index)]
        assert any(space.isspace() and digit.isnumeric() for space, digit in pairwise(text))
        assert smollm.decode(ids, skip_special=False) == text


def test_prompts_of_the_greedy_goldens_have_these_ids(smollm: Tokenizer) -> None:
    for row in json.loads((ROOT / "tests/goldens/greedy.json").read_text()):
        assert smollm.encode(row["text"]) == row["tokens"]


def test_demo_model_has_its_special_ids(smollm: Tokenizer) -> None:
    assert (smollm.bos_id, smollm.eos_ids, smollm.pad_id, smollm.vocab_size) == (1, (2,), 0, 49152)
    assert smollm.specials["<|im_end|>"] == 2 and len(smollm.specials) == 17
    assert smollm.template_variables["pad_token"] == "<|im_end|>"  # as declared, though never used as padding


def test_saved_folder_is_the_same_tokenizer(tmp_path: Path, golden: dict, smollm: Tokenizer) -> None:
    smollm.save(tmp_path)
    loaded = Tokenizer.from_path(tmp_path)
    assert loaded is not None and [loaded.encode(text) for text in golden["texts"]] == golden["ids"]["smollm"]
    assert (loaded.bos_id, loaded.eos_ids, loaded.pad_id) == (smollm.bos_id, smollm.eos_ids, smollm.pad_id)
    assert (loaded.chat_template, loaded.specials) == (smollm.chat_template, smollm.specials)


def make_folder(folder: Path, tokenizer_config: dict, **others: dict) -> Path:
    """A folder with a byte vocabulary and the specials <s> 256, </s> 257, <eot> 258, <hole> 259."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>", "<eot>", "<hole>")])
    backend.save(str(folder / "tokenizer.json"))
    for name, content in {"tokenizer_config": tokenizer_config, **others}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_stop_ids_of_every_source_are_joined(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }} <eot>\n{% endfor %}"
    config = {"eos_token": {"content": "</s>", "special": True}, "chat_template": template}
    folder = make_folder(tmp_path, config, generation_config={"eos_token_id": [257, 70]}, config={"eos_token_id": 71})
    assert Tokenizer.from_folder(folder).eos_ids == (257, 70, 71, 258)


def test_gguf_end_of_turn_and_template_are_stops() -> None:
    tokens = ["<eos>", "<eot>", "<turn>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    header = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": [], "token_type": [3] * 3 + [1] * 256}
    header |= {"eos_token_id": 0, "eot_token_id": 1, "padding_token_id": 0}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in header.items()}
    metadata["tokenizer.chat_template"] = "{% for m in messages %}{{ m.content }}<turn>{% endfor %}"
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.eos_ids == (0, 1, 2) and tokenizer.pad_id not in tokenizer.eos_ids
    assert tokenizer.bos_id is None


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"eos_token": "</s>", "pad_token": "<hole>"}, 259),  # declared
        ({"eos_token": "</s>", "pad_token": "</s>", "bos_token": "<s>"}, 258),  # declared, but a stop id
        ({"eos_token": "</s>", "pad_token": "</s>", "bos_token": "<s>", "chat_template": "<eot>"}, 259),
    ],
)
def test_padding_is_never_a_stop_id(tmp_path: Path, config: dict, expected: int) -> None:
    tokenizer = Tokenizer.from_folder(make_folder(tmp_path, config))
    assert tokenizer.pad_id == expected and tokenizer.pad_id not in tokenizer.eos_ids


def test_bos_is_added_only_when_asked_and_never_twice(tmp_path: Path) -> None:
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    tokenizer = Tokenizer.from_folder(make_folder(tmp_path, config))
    plain = tokenizer.encode("hi")
    assert tokenizer.encode("hi", add_special=True) == [256, *plain]
    assert tokenizer.encode("<s>hi", add_special=True) == [256, *plain] == tokenizer.encode("<s>hi")


def test_bytes_make_a_toy_vocabulary() -> None:
    tokenizer = Tokenizer.of_bytes()
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (0, 1, (2,), 259)
    assert len(tokenizer.encode("né<|im_end|>")) == 4
    assert tokenizer.decode(tokenizer.encode("né 我<|im_end|>")) == "né 我"


def test_a_folder_without_tokenizer_has_none(tmp_path: Path) -> None:
    assert Tokenizer.from_path(tmp_path) is None
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model = gpt2"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "tekken"}, "'tekken' is not one of default"),
        ({"tokenizer.ggml.model": "gpt2"}, "the GGUF header names no pre-tokenizer"),
    ],
)
def test_unknown_gguf_vocabularies_are_refused(metadata: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Tokenizer.from_gguf(metadata)


def test_broken_files_are_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {})
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        Tokenizer.from_folder(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot be read"):
        Tokenizer.from_folder(folder)


def test_a_pattern_that_fails_on_a_text_is_one_clear_line(tmp_path: Path) -> None:
    """Such a pattern makes the package panic, with an error that is no `Exception`."""
    backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("(a+)+$"), behavior="isolated")
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("aaa") == [0, 0, 0]
    with pytest.raises(UserError, match=r"tokenizer\.json: its patterns or its vocabulary fail on a text") as caught:
        tokenizer.encode("a" * 60 + "b")
    assert "\n" not in str(caught.value)
