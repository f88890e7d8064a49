"""One run that has time to learn, for all tests that look at what a finished run leaves."""

import pathlib

import pytest

LEARNING = {"steps": 20, "eval__every_steps": 10, "checkpoint__every_steps": 10}


@pytest.fixture(scope="session")
def learned(tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of a run that evaluated in the middle and saved twice. Not to be changed."""
    from tests.stages.runs import train  # imports jax, which needs the environment of the upper conftest

    workdir = tmp_path_factory.mktemp("learned") / "run"
    train(workdir, tiny_model, **LEARNING)
    return workdir
