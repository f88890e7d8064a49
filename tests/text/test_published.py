"""Five published tokenizers on 700 nasty texts, against their references (tests/goldens/make_tokenizers.py).

Their files are too large for this repository: R1JAX_TOKENIZERS names the folder that the script describes.
"""

import gzip
import json
import lzma
import os
import zlib
from pathlib import Path

import pytest

from r1jax.text.increments import TextIncrements
from r1jax.text.special_tokens import SpecialTokens
from r1jax.text.tokenizer import Tokenizer

GOLDENS = Path(__file__).parents[1] / "goldens"
TEXTS = json.loads(gzip.decompress((GOLDENS / "tokenizer.json.gz").read_bytes()))["texts"]
TEXTS += [first + last for first, last in zip(TEXTS[:240], reversed(TEXTS), strict=False)]
IDS = json.loads(lzma.decompress((GOLDENS / "tokenizers.json.xz").read_bytes()))
FOLDER = Path(os.environ.get("R1JAX_TOKENIZERS", "absent"))
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FOLDER.is_dir(), reason="R1JAX_TOKENIZERS names no folder")]


@pytest.fixture(scope="module", params=IDS)
def published(request: pytest.FixtureRequest) -> tuple[str, Tokenizer]:
    tokenizer = Tokenizer.from_path(FOLDER / request.param)
    assert tokenizer is not None
    return request.param, tokenizer


def test_ids_are_those_of_the_reference(published: tuple[str, Tokenizer]) -> None:
    name, tokenizer = published
    # Sentencepiece itself never reads a special token in a text; we do, as transformers does.
    texts = [text if name != "mistral" else SpecialTokens(tokenizer.specials).escape(text) for text in TEXTS]
    crcs = [zlib.crc32(json.dumps(tokenizer.encode(text)).encode()) for text in texts]
    assert len(crcs) >= 700
    assert [text for text, ours, theirs in zip(TEXTS, crcs, IDS[name], strict=True) if ours != theirs] == []


def test_ids_that_arrive_one_by_one_give_the_same_text(published: tuple[str, Tokenizer]) -> None:
    _, tokenizer = published
    for text in TEXTS:
        ids = tokenizer.encode(text)
        increments = TextIncrements(tokenizer)
        assert "".join([*map(increments.push, ids), increments.end()]) == tokenizer.decode(ids), text


def test_spelt_special_tokens_are_characters(published: tuple[str, Tokenizer]) -> None:
    _, tokenizer = published
    found = SpecialTokens(tokenizer.specials)
    for special in tokenizer.specials:
        ids = tokenizer.encode(found.escape(f"a {special} b"))
        assert not {*ids} & {*tokenizer.specials.values()}, special
        assert tokenizer.decode(ids) == f"a {special} b", special
