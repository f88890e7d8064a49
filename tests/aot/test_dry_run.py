"""Dry runs: every config is described in full, missing files are told, mistakes end it, and no backend is started."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from r1jax import train
from r1jax.aot import dry_run
from r1jax.core.sections import flatten

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPECS = [f"configs/{file.name}" for file in sorted((ROOT / "configs").glob("*.py"))] + [
    "configs/r1_pipeline.py:size=671b",
    "configs/grpo_zero.py:task=gsm8k",
]
# Describes each config in a place without models, and says whether a backend of jax was needed.
DESCRIBE = """
import contextlib, io, json, sys
from r1jax import train
for spec in sys.argv[2:]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        code = train.main(["train", f"--config={sys.argv[1]}/{spec}", "--dry_run"])
    import jax
    started = bool(jax._src.xla_bridge._backends)
    print(json.dumps([spec, code, started, text.getvalue()]))
"""


# Configs that begin with fresh weights and make their data.
WHOLE = ("configs/r1_pipeline.py", "configs/overoptimization.py", "configs/grpo_guess.py")


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("clone")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    command = [sys.executable, "-c", DESCRIBE, str(ROOT), *SPECS]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row[:3] for row in rows] == [[spec, 0, False] for spec in SPECS], done.stderr[-3000:]
    assert list(folder.iterdir()) == [], "nothing is written"
    return {spec: text for spec, _, _, text in rows}


@pytest.mark.parametrize("spec", SPECS)
def test_every_config_is_described_where_nothing_is_there_yet(described: dict[str, str], spec: str):
    text = described[spec]
    for start in ("config.stage = ", "config.seed = ", "workdir: "):
        assert any(line.startswith(start) for line in text.splitlines()), start
    assert "parameters" in text or "size unknown until its files exist" in text
    assert "missing: " in text or spec in WHOLE


def test_sizes_steps_and_missing_files(described: dict[str, str]):
    text = described["configs/r1_zero_671b.py"]
    assert "model: deepseek-ai/DeepSeek-V3-Base, 671.0 B parameters" in text
    assert "steps: 650, each of 4 updates" in text and "512 prompts x 16 completions" in text
    assert "missing: config.data.path: no file is named; give one with --config.data.path=FILE" in text
    text = described["configs/grpo_zero.py"]
    gguf = "models/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert (
        f"missing: config.model.name = {gguf}: `python launch/fetch_demo.py` makes it (in a clone of r1jax)\n" in text
    )
    assert f"model: {gguf}, 134.5 M parameters" in text
    assert 'config.train.old_logprobs = "sampler"  (file; over default "trainer")' in text
    pipeline = described["configs/r1_pipeline.py"]
    assert "stage 4 of 14, zero (grpo): pending" in pipeline and "config.stages.zero.rollout.slots = 64" in pipeline


def test_a_model_named_by_a_flag_has_another_origin_than_the_default(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    for name, message in {
        "org/none": "no such folder here; the run fetches org/none from the hub at its start",
        "mine/a/b": "no such file or folder; name another with --config.model.name=MODEL",
    }.items():
        command = ["train", f"--config={ROOT}/configs/grpo_zero.py", "--dry_run", f"--config.model.name={name}"]
        assert train.main(command) == 0
        text = capsys.readouterr().out
        assert f"missing: config.model.name = {name}: {message}\n" in text and "fetch_demo" not in text


def test_a_workdir_is_looked_at(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    workdir = shutil.copytree(ROOT / "tests/fixtures/workdir_format1/run", tmp_path / "run")
    command = ["train", f"--config={ROOT}/tests/stages/tiny_grpo.py", f"--workdir={workdir}", "--dry_run"]
    command += ["--config.model.name=tiny_model", "--config.steps=4"]
    assert train.main(command) == 0
    text = capsys.readouterr().out
    assert f"workdir: {workdir}; the run resumes from step 2 of 4" in text
    assert "config.steps = 4  (flag; over file 3)" in text
    assert train.main([*command, "--config.seed=1"]) == 2
    assert "config.seed = 0, this one has 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.rewards={'answr_reward': 1.0}", "did you mean answer_reward"),
        ("--config.train.micro_batch_size=12", "must divide config.train.micro_batch_size = 12"),
        ("--config.data.template=none", "config.data.template"),
        ("--config.train.replay_experts=true", "config.train.replay_experts needs a model with experts"),
    ],
)
def test_the_first_error_ends_it(flag: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert train.main(["train", f"--config={ROOT}/configs/grpo_zero.py", "--dry_run", flag]) == 2
    assert message in capsys.readouterr().err


# --- The flags that a config file does not spell ---


@pytest.mark.parametrize(
    ("flag", "effects"),
    [
        ("loss.preset=dapo", {"loss.clip_high": 0.28, "loss.aggregation": "token", "dynamic_sampling.max_rounds": 4}),
        ("loss.preset=dr_grpo", {"loss.aggregation": "constant", "loss.scale": "none"}),
        ("lora.rank=4", {"lora.rank": 4}),
        ("train.share_prompts=false", {"train.share_prompts": False}),
        ("rollout.cache_pieces=1", {"rollout.cache_pieces": 1}),
        ("rollout.temperature_schedule=((1, 1.0), (10, 0.6))", {"rollout.temperature_schedule": ((1, 1.0), (10, 0.6))}),
        ("dynamic_sampling.max_rounds=3", {"dynamic_sampling.max_rounds": 3}),
        ("model.remat=full", {"model.remat": "full"}),
        ("model.dispatch=dense", {"model.dispatch": "dense"}),
        ("train.replay_experts=true", {"train.replay_experts": True}),
    ],
)
def test_any_key_can_be_set_by_a_flag(tmp_path: pathlib.Path, flag: str, effects: dict[str, object]):
    from r1jax.runs.workdir import write_config

    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")  # what write_config would make of the model
    flags = train.split_overrides([f"--config.{flag}"])[1]
    settings = train.resolve(f"{ROOT}/configs/grpo_zero.py", None, flags)[0].settings
    write_config(settings, tmp_path)
    saved = flatten(json.loads((tmp_path / "config.json").read_text()))
    for key, value in effects.items():
        found = settings
        for name in key.split("."):
            found = getattr(found, name)
        assert found == value and saved[key] == json.loads(json.dumps(value)), key
    assert saved["loss.kl_coefficient"] == 0.0 and saved["rollout.max_new_tokens"] == 40


@pytest.mark.parametrize(
    ("flag", "closest"),
    [
        ("loss.prest=dapo", "loss.preset"),
        ("lora.rang=4", "lora.rank"),
        ("train.replay_expert=true", "train.replay_experts"),
        ("train.share_prompt=false", "train.share_prompts"),
        ("rollout.cache_peaces=1", "rollout.cache_pieces"),
        ("rollout.temperature_shedule=()", "rollout.temperature_schedule"),
        ("dynamic_sampling.max_round=3", "dynamic_sampling.max_rounds"),
        ("model.remta=full", "model.remat"),
    ],
)
def test_a_misspelt_key_gets_the_closest_name(flag: str, closest: str, capsys: pytest.CaptureFixture[str]):
    assert train.main(["train", f"--config={ROOT}/configs/grpo_zero.py", "--dry_run", f"--config.{flag}"]) == 2
    assert f'did you mean "{closest}"?' in capsys.readouterr().err


def test_credentials_in_an_address_are_not_printed():
    address = {"judge": {"endpoint": "http://user:secret@host/v1"}, "other": "https://secret@host", "mail": "a@b"}
    shown = dry_run._show(address)
    assert "secret" not in shown and shown.count("://…@host") == 2 and "a@b" in shown
    assert dry_run._show("http://host/v1?x=@") == '"http://host/v1?x=@"'
