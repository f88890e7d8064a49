"""Every family's tiny models, as transformers saves them, held against what it computes of them."""

import pathlib

import pytest

from r1jax.models import stacks
from tests.models import golden

FOLDERS = sorted((golden.DENSE.with_name("families")).iterdir())
QUICK = (
    "gemma3",
    "gemma4_moe",
    "gemma4_shared",
    "glm4_moe",
    "gpt_oss",
    "llama4",
    "phi3",
    "qwen3_next",
)  # between them every part of the decoder
OLDER = sorted((golden.DENSE.with_name("older")).iterdir())
each = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
most = pytest.mark.parametrize(
    "folder",
    [pytest.param(folder, marks=() if folder.name in QUICK else pytest.mark.slow) for folder in FOLDERS],
    ids=lambda folder: folder.name,
)


@most
def test_logits_and_their_gradient_are_those_of_transformers(folder: pathlib.Path) -> None:
    golden.check_family(folder)


@pytest.mark.slow
@each
def test_greedy_tokens_are_those_of_transformers(folder: pathlib.Path) -> None:
    golden.check_greedy(folder)


@pytest.mark.slow
@each
def test_cache_and_packing_change_nothing(folder: pathlib.Path) -> None:
    golden.check_cache(folder)
    golden.check_packed(folder)


@pytest.mark.slow
@each
def test_samplers_and_trainer_agree(folder: pathlib.Path) -> None:
    golden.check_samplers(folder)


@most
def test_caches_that_are_written_in_place_hold_the_same(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden.check_stacked(folder, lambda: monkeypatch.setattr(stacks, "are_read_in_place", lambda: True))


@each
def test_tensors_come_back_unchanged(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    golden.check_files(folder, tmp_path)


@pytest.mark.parametrize("folder", OLDER, ids=lambda folder: folder.name)
def test_files_of_an_older_transformers_are_read_and_written(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    golden.check_logits(folder, scan_layers=True)
    golden.check_files(folder, tmp_path)
