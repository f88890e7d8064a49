"""Helper processes get no secret of ours, and still work."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.core.startup.helper_process import minimal_environment
from r1jax.data.sources import draw_reasoning_gym
from r1jax.rewards.verifier import VerifierPool

SECRETS = {"HF_TOKEN": "hf_1", "WANDB_API_KEY": "w1", "OPENAI_API_KEY": "sk-1", "AWS_SECRET_ACCESS_KEY": "a"}


def test_only_known_names_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    found = minimal_environment(PYTHONHASHSEED="0")
    assert found["PYTHONHASHSEED"] == "0" and "PATH" in found and not set(SECRETS) & set(found)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_workers_of_the_verifier_see_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    pool = VerifierPool(max_workers=1)
    try:
        assert pool.verify([("$x+1$", r"\\boxed{1+x}")]) == [1.0]
        for worker in pool.process_ids():
            environment = Path(f"/proc/{worker}/environ").read_bytes()
            assert b"PATH=" in environment and not [name for name in SECRETS if name.encode() in environment]
    finally:
        pool.close()


def test_the_worker_of_reasoning_gym_sees_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("reasoning_gym") is None:
        pytest.skip("reasoning_gym is not installed")
    if importlib.util.find_spec("reasoning_gym") is None:
        pytest.skip("reasoning_gym is not installed")
    seen = []

    def run(command: Any, *, env: dict[str, str], **named: Any) -> subprocess.CompletedProcess[str]:
        seen.append(env)
        return subprocess.CompletedProcess(command, 1, "", "stopped here")

    monkeypatch.setattr(subprocess, "run", run)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="could not be drawn: stopped here"):
        draw_reasoning_gym("basic_arithmetic", 2, 0, problems=4, args={})
    assert len(seen) == 1 and not set(SECRETS) & set(seen[0]) and seen[0]["PYTHONHASHSEED"] == "0"
