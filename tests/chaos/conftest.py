"""The forking process that the tests of this package share."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def spawner() -> Iterator["Spawner"]:  # noqa: F821
    from tests.chaos.spawner import Spawner  # needs the environment of the upper conftest

    spawner = Spawner()
    yield spawner
    spawner.close()
