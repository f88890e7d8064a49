"""Every family's tiny models, as transformers saves them, held against what it computes of them."""

import pathlib

import pytest

from tests.models import golden

FOLDERS = sorted((golden.DENSE.with_name("families")).iterdir())
each = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


@each
def test_logits_and_their_gradient_are_those_of_transformers(folder: pathlib.Path) -> None:
    golden.check_family(folder)


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


@each
def test_tensors_come_back_unchanged(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    golden.check_files(folder, tmp_path)
