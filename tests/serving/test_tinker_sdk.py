"""The `tinker` SDK's public methods against the server, and tinker-cookbook's recipes.

R1JAX_TINKER_PYTHON names an interpreter with tinker and tinker-cookbook:

    R1JAX_TINKER_PYTHON=/path/to/python pytest -m slow -n0 tests/serving/test_tinker_sdk.py
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.command import Command
from tests.tiny_model import write_tiny_model

PYTHON = os.environ.get("R1JAX_TINKER_PYTHON", "")
MODEL = "Qwen/Qwen3-8B-Base"  # as hub_stand_ins.py calls it
FOLDER = Path(__file__).parent / "tinker"
# Methods that are refused, with a reason; everything else works.
REFUSED = {
    "RestClient.assign_session_project",
    "RestClient.export_session_trace",
    "RestClient.get_audit_log",
    "RestClient.get_billing_usage",
    "RestClient.get_current_checkpoint_storage_usage",
    "RestClient.get_external_weights_urls",
    "RestClient.publish_checkpoint_from_tinker_path",
    "RestClient.search_sessions",
    "RestClient.unpublish_checkpoint_from_tinker_path",
    "RestClient.whoami",
    "TrainingClient.save_weights_external",
}
COMMON = {"lora_rank": 4, "max_steps": 2}
RECIPES = {
    "sl_loop": {"batch_size": 8, "max_length": 256},
    "rl_loop": {"batch_size": 2, "group_size": 4, "max_tokens": 8, "loss_fn": "importance_sampling"},
    "math_rl.train": {"groups_per_batch": 2, "group_size": 4, "max_tokens": 5, "loss_fn": "importance_sampling"},
    "preference.dpo.train": {"batch_size": 4, "max_length": 256, "lora_rank": None},
    "distillation.on_policy_distillation": {
        "groups_per_batch": 2,
        "group_size": 2,
        "max_tokens": 8,
        "teacher_model": MODEL,
    },
}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="R1JAX_TINKER_PYTHON names no interpreter")]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which a hub's cache holds the stand-ins; `MODEL_FOLDER` among them."""
    home = tmp_path_factory.mktemp("hub")
    folder = write_tiny_model(home / "tiny", max_position_embeddings=2048)
    own = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TINKER_API_KEY": "tml-local"}
    script = str(FOLDER / "hub_stand_ins.py")
    done = subprocess.run(
        [PYTHON, script, str(home), str(folder)], capture_output=True, text=True, env={**os.environ, **own}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {**own, "MODEL_FOLDER": str(folder)}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuning")


@pytest.fixture(scope="module")
def server(hub: dict[str, str], workdir: Path) -> Iterator[Command]:
    flags = ["--api=openai,tinker", f"--name={MODEL}", f"--workdir={workdir}", "--slots=8", "--max_tokens=1024"]
    with Command(hub["MODEL_FOLDER"], *flags) as server:
        yield server


def run(command: list[str], hub: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **hub}, cwd=hub["HF_HOME"])
    assert done.returncode == 0, (done.stdout[-1000:], done.stderr[-3000:])
    return done.stdout


def test_methods_of_the_sdk_have_their_effects(server: Command, hub: dict[str, str], workdir: Path) -> None:
    told = run([PYTHON, str(FOLDER / "sdk_methods.py"), server.address, MODEL, str(workdir)], hub)
    rows = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    if target := os.environ.get("R1JAX_TINKER_TABLE"):
        Path(target).write_text(told)
    assert len(rows) > 79 and not [row for row in rows if row["result"] in ("wrong", "unseen")]
    refused = {row["method"].removesuffix("_async") for row in rows if row["result"] == "refused"}
    assert refused == REFUSED
    assert all(len(row["words"]) > 20 for row in rows if row["result"] == "refused")


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_of_the_cookbook_run(recipe: str, server: Command, hub: dict[str, str], tmp_path: Path) -> None:
    settings = {
        **COMMON,
        "model_name": MODEL,
        "base_url": server.address,
        "log_path": tmp_path / "log",
        **RECIPES[recipe],
    }
    words = [f"{name}={value}" for name, value in settings.items() if value is not None]
    run([PYTHON, "-m", f"tinker_cookbook.recipes.{recipe}", *words], hub)
    rows = [json.loads(line) for line in (tmp_path / "log" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) >= 2
    saved = [json.loads(line) for line in (tmp_path / "log" / "checkpoints.jsonl").read_text().splitlines()]
    assert saved[-1]["state_path"].startswith("tinker://")
    if recipe == "sl_loop":
        assert all(0 < row["train_mean_nll"] < 20 for row in rows)
