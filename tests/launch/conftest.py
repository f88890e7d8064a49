"""Puts launch/ and this folder on the path; a stand-in cloud as a fixture."""

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "launch"), str(Path(__file__).parent)]

from stand_in import StandIn  # noqa: E402


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[StandIn]:
    """A stand-in cloud with a slice of two hosts, and a wheel that is none."""
    wheel = tmp_path / "r1jax-0-py3-none-any.whl"
    zipfile.ZipFile(wheel, "w").close()
    made = StandIn(tmp_path / "cloud", wheel)
    yield made
    made.end()
