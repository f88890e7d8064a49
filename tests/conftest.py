"""What every test stands on: eight pretend devices on the CPU, a compilation cache, the demo model.

The environment is set here, before anything imports jax, and reaches the programs that tests start. Compiled programs
are kept under .cache/jax: a loaded program gives the same bits as a fresh one, and the next run of the tests saves the
compiling. The folder may be deleted at any time.
"""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FETCH = "python launch/fetch_demo.py"

# Eight pretend devices on two cores take turns, so the time after which XLA takes a collective for dead is raised.
XLA_FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds": "120",
    "--xla_cpu_collective_call_terminate_timeout_seconds": "600",
}

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
present = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join(
    [present, *(f"{flag}={value}" for flag, value in XLA_FLAGS.items() if f"{flag}=" not in present)]
).strip()


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
