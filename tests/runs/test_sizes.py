"""Sizes for a model on a machine: parameters by files, runs and names, the kind of device without touching one."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from r1jax.runs import sizes
from r1jax.runs.sizes import UNKNOWN, choose_sizes, count_parameters, find_kind
from r1jax.weights import load_pretrained


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", 1.5e9),
        ("Qwen/Qwen2.5-0.5B@main", 0.5e9),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6),
        ("absent/SmolLM2-135M-Instruct.Q4_1.gguf", 135e6),
        ("Qwen/Qwen3-30B-A3B", 30e9),  # all experts, for they are held in memory
        ("smollm2_135m", 135e6),
        ("org/odd", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_a_name_tells_the_parameters(name: str, count: float) -> None:
    assert count_parameters(name) == count


def test_files_and_runs_tell_them_exactly(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    from r1jax.models.presets import count_parameters as count_shape
    from r1jax.weights.pretrained import open_model

    opened = open_model(tiny_model)
    expected = count_shape(opened.family, opened.config).total
    assert count_parameters(str(tiny_model)) == expected > 0
    assert load_pretrained(tiny_model)[0].config == opened.config
    (tmp_path / "run/checkpoints/3").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text(json.dumps({"model": {"name": str(tiny_model)}}))
    for path in ("run", "run/checkpoints/3"):
        assert count_parameters(str(tmp_path / path)) == expected
    (tmp_path / "7b").mkdir()
    assert count_parameters(str(tmp_path / "7b")) == 7e9, "a folder that is no model yet goes by its name"


@pytest.mark.parametrize(
    ("asked", "files", "kind"),
    [
        ("cpu", ("nvidia0", "accel0"), "cpu"),
        ("cuda,cpu", (), "gpu"),
        ("tpu", (), "tpu"),
        ("", ("nvidia0",), "gpu"),
        ("", ("accel0",), "tpu"),
        ("", (), "cpu"),
    ],
)
def test_the_kind_of_device(
    asked: str, files: tuple[str, ...], kind: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    monkeypatch.setattr(
        sizes, "DEVICE_FILES", {"tpu": (f"{tmp_path}/accel[0-9]*",), "gpu": (f"{tmp_path}/nvidia[0-9]*",)}
    )
    for file in files:
        (tmp_path / file).touch()
    assert find_kind() == kind


def test_larger_models_get_adapters_and_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    small, medium, large = (choose_sizes(f"org/x-{size}") for size in ("135M", "1.5B", "7B"))
    assert (small.lora, medium.lora, large.lora) == (0, 16, 16) and choose_sizes("org/x-7B", 0).lora == 0
    assert small.row_tokens > medium.row_tokens > large.row_tokens >= large.length
    assert small.model == {"dtype": "bfloat16", "scan_layers": True, "remat": "full"}
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    here = choose_sizes("org/x-135M")
    assert here.model == {} and here.length < small.length and here.rows_per_step < small.rows_per_step


def test_it_imports_no_jax() -> None:
    code = "import sys; sys.modules['jax'] = None; from r1jax.runs.sizes import choose_sizes; choose_sizes('org/x')"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": "."}, capture_output=True)
    assert done.returncode == 0, done.stderr
