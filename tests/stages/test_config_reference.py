"""Every config key is documented, and docs/config.md is what the code says."""

import dataclasses
import pathlib
import typing
from collections.abc import Iterator

import pytest

from r1jax import train
from r1jax.core.resolution import section_type
from r1jax.core.sections import is_mapping
from r1jax.stages.config_reference import describe_all, describe_stage, list_entries, read_meanings
from r1jax.stages.distill.distill import METHODS
from r1jax.stages.pipeline.resolve import Links
from r1jax.stages.registry import STAGES, find_stage

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROOTS = [find_stage({"stage": name}).CONFIG for name in STAGES if name != "distill"]
ROOTS += [find_stage({"stage": "distill", "method": method}).CONFIG for method in METHODS]


def find_sections(root: type) -> Iterator[type]:
    """A dataclass and those that its fields hold, in dicts too."""
    yield root
    hints = typing.get_type_hints(root)
    for field in dataclasses.fields(root):
        kind = hints[field.name]
        inner = section_type(typing.get_args(kind)[1] if is_mapping(kind) else kind)
        if inner is not None:
            yield from find_sections(inner)


SECTIONS = sorted(
    {section for root in [*ROOTS, Links] for section in find_sections(root)}, key=lambda cls: cls.__name__
)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda cls: cls.__name__)
def test_every_key_has_a_meaning_and_every_meaning_a_key(section: type):
    meanings = read_meanings(section)
    assert set(meanings) == {field.name for field in dataclasses.fields(section)}
    for name, meaning in meanings.items():
        assert len(meaning) > 5 and meaning.endswith("."), f"{name}: {meaning}"


def test_the_page_of_all_stages_is_up_to_date(capsys: pytest.CaptureFixture[str]):
    assert (ROOT / "docs" / "config.md").read_text("utf-8") == describe_all(), (
        "docs/config.md is not what the dataclasses say: python -m r1jax.train --help_config > docs/config.md"
    )
    assert train.main(["train", "--help_config"]) == 0
    assert capsys.readouterr().out == describe_all()


def test_the_keys_of_one_config(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    assert train.main(["train", "--config=configs/sft_gsm8k.py", "--help_config"]) == 0
    text = capsys.readouterr().out
    assert text == describe_stage(find_stage({"stage": "sft"}).CONFIG, "sft")
    assert "- `lora.rank` (a whole number; default `0`): rank of the adapters" in text
    assert "- `data.sources.NAME.path` (a text; must be given)" in text and "rollout." not in text


def test_an_entry_takes_its_default_from_the_field_that_holds_its_section():
    entries = {key: default for key, _, default, _ in list_entries(find_stage({"stage": "pipeline"}).CONFIG)}
    assert entries["measure.generate.temperature"] == 0.6 and entries["measure.generate.slots"] == 64
