"""What a config's `model` section says of its tokenizer."""

import dataclasses
from pathlib import Path

import pytest

from r1jax.runs.model_setup import ModelConfig, describe_model, load_model, load_tokenizer
from r1jax.text.encoding import encode_prompt
from r1jax.text.tokenizer import Tokenizer


@pytest.mark.parametrize("asked", ["text", "control"])
def test_special_tokens_in_texts_are_read_as_the_config_says(tiny_model: Path, tmp_path: Path, asked: str) -> None:
    """Also where data are encoded before the model is loaded, and by whoever reads the run's model."""
    config = ModelConfig(name=str(tiny_model), special_tokens_in_text=asked)  # type: ignore[arg-type]
    found = [load_tokenizer(config), load_model(config)[1]]
    describe_model(config, tmp_path / "model")
    found.append(Tokenizer.from_path(tmp_path / "model"))
    shape = ModelConfig(preset="smollm2_135m", special_tokens_in_text=asked)  # type: ignore[arg-type]
    describe_model(shape, tmp_path / "shape")
    found += [load_tokenizer(shape), Tokenizer.from_path(tmp_path / "shape")]
    for tokenizer in found:
        assert tokenizer is not None
        tokenizer = dataclasses.replace(tokenizer, chat_template="{{ messages[0].content }}")
        token, id_ = next(iter(tokenizer.specials.items()))
        ids = encode_prompt(tokenizer, [{"role": "user", "content": f"a {token} b"}])
        assert (id_ in ids) == (asked == "control")
