"""What every test stands on: eight pretend devices on the CPU, a compilation cache, the demo model.

The environment is set here, before anything imports jax, and reaches the programs that tests start. Compiled programs
are kept under .cache/jax: a loaded program gives the same bits as a fresh one, and the next run of the tests saves the
compiling. The folder may be deleted at any time.
"""

import gc
import os
from pathlib import Path

import pytest

from tests.environment import ROOT, set_environment

FETCH = "python launch/fetch_demo.py"

set_environment()


def pytest_collection_finish() -> None:
    """Takes what the imports left out of garbage collection, which would scan it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model's .gguf file: $R1JAX_DEMO_MODEL, or what the fetch left in models/. Its absence fails the test."""
    named = os.environ.get("R1JAX_DEMO_MODEL")
    found = [Path(named)] if named else sorted((ROOT / "models").glob("*.gguf"))
    if not found or not found[0].is_file():
        where = f"$R1JAX_DEMO_MODEL = {named}" if named else "models/*.gguf"
        pytest.fail(f"the demo model is not there ({where}); fetch it with: {FETCH}", pytrace=False)
    return found[0]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama as a Hugging Face folder (tests/tiny_model.py says what it is made of)."""
    from tests.tiny_model import write_tiny_model  # imports numpy and more, which many tests do without

    return write_tiny_model(tmp_path_factory.mktemp("tiny_model"))
