"""Model sections with the keys of before version 0.2.0: accepted with a warning where they name one model."""

import logging
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from r1jax.core.config import load_config
from r1jax.core.errors import UserError
from r1jax.eval.former_models import accept_former
from r1jax.stages.registry import resolve_run

ROOT = Path(__file__).parents[2]
HERE = str(Path(__file__))


@pytest.mark.parametrize(
    ("file", "flags", "expected"),
    [
        ({"path": "a.gguf"}, {}, {"name": "a.gguf"}),  # absent, but it is all that is named
        ({"path": HERE, "hub": "org/x"}, {}, {"name": HERE}),
        ({"path": "@zero", "hub": "org/x"}, {}, {"name": "@zero"}),
        ({"path": "", "hub": "org/x"}, {}, {"name": "org/x"}),
        ({"path": "", "hub": "org/x", "fetch": "get a"}, {}, {"name": "org/x"}),
        ({"path": "a", "fetch": "get a"}, {}, {"name": "a", "fetch": "get a"}),
        ({"path": "a", "hub": "org/x"}, {"path": ""}, {"name": "org/x"}),
        ({"path": "a", "hub": "org/x"}, {"path": "b", "hub": ""}, {"name": "b"}),
        ({"path": "a", "hub": "org/x"}, {"name": "b"}, {"name": "b"}),
        ({"path": "a", "preset": "tiny_llama"}, {}, {"tokenizer": "a", "preset": "tiny_llama"}),
        ({"path": "a"}, {"preset": "tiny_llama"}, {"tokenizer": "a", "preset": "tiny_llama"}),
        ({"name": "a"}, {"path": "b"}, {"name": "b"}),
        ({}, {"hub": "org/x"}, {"name": "org/x"}),
    ],
)
@pytest.mark.parametrize("key", ["model", "teacher", "student"])
@pytest.mark.parametrize("kind", [dict, ConfigDict])
def test_former_keys_become_the_name(
    key: str, kind: Any, file: dict[str, str], flags: dict[str, str], expected: dict[str, str]
) -> None:
    config = kind({key: file, "seed": 1})
    asked = {f"{key}.{name}": value for name, value in flags.items()}
    found, changed, warnings = accept_former(config, asked)
    values = {**dict(found[key]), **{name.removeprefix(f"{key}."): value for name, value in changed.items()}}
    assert values == expected and found["seed"] == 1
    assert len(warnings) == 1 and "work until version 0.4.0" in warnings[0]
    assert dict(config[key]) == file and len(asked) == len(flags), "what was given stays as it is"


@pytest.mark.parametrize(
    ("file", "flags", "message"),
    [
        (
            {"path": "a", "hub": "org/x"},
            {},
            "config.model.path = 'a' does not exist, and config.model.hub = 'org/x' no",
        ),
        ({"path": HERE, "hub": "org/x"}, {"path": "b"}, "config.model.path = 'b' does not exist"),
        ({"name": "a", "hub": "org/x"}, {}, "give config.model.name alone"),
        ({"name": "a"}, {"hub": "org/x"}, "give config.model.name alone"),
        ({}, {"path": "a", "name": "a"}, "give config.model.name alone"),
    ],
)
def test_what_could_mean_two_models_is_an_error(file: dict[str, str], flags: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        accept_former(ConfigDict({"model": file}), {f"model.{name}": value for name, value in flags.items()})


def test_a_run_takes_them_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(str(ROOT / "configs/grpo_zero.py"))
    with caplog.at_level(logging.WARNING):
        assert not caplog.records
        model = resolve_run(config, {"model.path": "mine.gguf"}).settings.model
    assert model.name == "mine.gguf" and "config.model.path are now config.model.name = 'mine.gguf'" in caplog.text


def test_the_command_that_makes_the_default_is_not_another_model_s() -> None:
    config = load_config(str(ROOT / "configs/grpo_zero.py"))
    fetch = "python launch/fetch_demo.py"
    assert resolve_run(config).settings.model.fetch == fetch
    assert resolve_run(config, {"model.name": config.model.name}).settings.model.fetch == fetch
    assert resolve_run(config, {"model.name": "mine"}).settings.model.fetch == ""
    assert resolve_run(config, {"model.name": "mine", "model.fetch": "make"}).settings.model.fetch == "make"
    assert config.model.fetch == fetch
