"""The train command before any training: help, one clear line for each mistake, exit codes, no jax until needed."""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from r1jax import stages, train
from r1jax.stages.registry import STAGES

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = """
    from ml_collections import ConfigDict
    from r1jax.core.config import parse_args

    def get_config(arg=""):
        args = parse_args(arg, steps=10)
        return ConfigDict({"stage": "probe", "steps": args.steps, "data": {"path": "a.jsonl", "shuffle": False}})
"""
# A stage of its own: writes down what it was given, or ends as it is told to.
PROBE = """
    import dataclasses

    from r1jax.core.errors import UserError

    @dataclasses.dataclass(frozen=True)
    class Data:
        path: str = ""
        shuffle: bool = False

    @dataclasses.dataclass(frozen=True)
    class CONFIG:
        steps: int
        stage: str = "probe"
        data: Data = Data()

        def check(self):
            pass

    def run(settings, workdir):
        if settings.steps == 0:
            raise UserError("config.steps must be positive,\\n  got 0")
        if settings.steps < 0:
            raise KeyboardInterrupt
        print(settings.steps, settings.data.path, settings.data.shuffle, workdir)
"""


@pytest.fixture
def config(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config file for the stage `probe`."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "probe.py").write_text(textwrap.dedent(PROBE))
    (tmp_path / "small.py").write_text(textwrap.dedent(CONFIG))
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(tmp_path / "stages")])
    monkeypatch.setitem(STAGES, "probe", "r1jax.stages.probe")
    yield str(tmp_path / "small.py")
    sys.modules.pop("r1jax.stages.probe", None)
    stages.__dict__.pop("probe", None)


def run(*args: str) -> int:
    return train.main(["train", *args])


def test_a_run_gets_the_config_and_the_default_workdir(config: str, capsys: pytest.CaptureFixture):
    assert run(f"--config={config}") == 0
    assert capsys.readouterr().out.split() == ["10", "a.jsonl", "False", str(pathlib.Path("runs/small"))]


def test_arguments_overrides_and_workdir(config: str, capsys: pytest.CaptureFixture):
    flags = ["--config.data.path=x=1:b.jsonl", "--workdir=/tmp/w", "--config.data.shuffle"]
    assert run(f"--config={config}:steps=3", *flags) == 0
    assert capsys.readouterr().out.split() == ["3", "x=1:b.jsonl", "True", "/tmp/w"]
    assert run("--config.steps", "7", "--config", config) == 0
    assert capsys.readouterr().out.split()[0] == "7"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "error: --config is missing, as in --config=configs/grpo_zero.py (see --help)"),
        (["--config=none.py"], 'error: no such config file: "none.py"'),
        (["--config={}:stepz=3"], 'unknown config argument "stepz"; did you mean "steps"?'),
        (["--config={}:steps=many"], 'argument steps must be a whole number, got "many"'),
        (["--config={}", "--config.data.pth=x"], 'error: config has no key data.pth; did you mean "data.path"?'),
        (["--config={}", "--config.steps=soon"], 'error: config.steps must be a whole number, got "soon"'),
        (["--config={}", "--config.steps"], 'error: config.steps must be a whole number, got "true"'),
        (["--config={}", "--config.stage=grpoo"], "error: config.stage must be one of "),
        (["--config={}", "--config.stage=empty"], "error: config.stage must be one of "),
        (["--config={}", "--workdri=x"], "workdri"),
        (["--config={}", "steps=3"], 'error: unexpected argument "steps=3"'),
        (["--config={}", "--config.steps=0"], "error: config.steps must be positive, got 0"),
    ],
)
def test_a_mistake_gets_one_line(config: str, args: list[str], message: str, capsys: pytest.CaptureFixture):
    assert run(*(arg.format(config) for arg in args)) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.startswith("error: ") and output.err.count("\n") == 1
    assert not output.out


@pytest.mark.parametrize("inside", ["", "run/deeper"])
def test_a_workdir_that_is_a_file(config: str, tmp_path: pathlib.Path, inside: str, capsys: pytest.CaptureFixture):
    path = tmp_path / "taken"
    path.write_text("")
    assert run(f"--config={config}", f"--workdir={path / inside}") == 2
    assert capsys.readouterr().err == f"error: --workdir={path / inside} must name a folder, but {path} is a file\n"


def test_ctrl_c_is_one_line(config: str, capsys: pytest.CaptureFixture):
    assert run(f"--config={config}", "--config.steps=-1") == 130
    assert capsys.readouterr().err.strip() == "stopped; the same command resumes from the last checkpoint"


def test_help_is_for_newcomers():
    done = subprocess.run([sys.executable, "-m", "r1jax.train", "--help"], capture_output=True, text=True, check=True)
    for words in ("python -m r1jax.train --config=configs/grpo_zero.py", "--config:", "--workdir:", "report.html"):
        assert words in done.stdout
    assert not done.stderr


@pytest.mark.parametrize(("key", "name"), [("wandb", "Weights & Biases"), ("trackio", "Trackio")])
def test_a_missing_tracker_is_found_before_any_work(
    key: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, key, None)
    monkeypatch.chdir(ROOT)
    line = f"{name} (config.log.{key}_project) needs the package {key}: pip install -e '.[{key}]'\n"
    assert run(TINY, f"--config.log.{key}_project=r1") == 2
    assert capsys.readouterr().err == f"error: {line}"
    assert run(TINY, f"--config.log.{key}_project=r1", "--dry_run") == 0
    assert line in capsys.readouterr().out


def test_a_mistake_from_the_shell():
    command = [sys.executable, "-m", "r1jax.train", TINY, "--config.stepz=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == 'error: config has no key stepz; did you mean "steps"?\n'


def test_a_wrong_config_is_found_without_jax(config: str):
    code = "import sys; sys.modules['jax'] = None; from r1jax import train; sys.exit(train.main(sys.argv))"
    done = subprocess.run([sys.executable, "-c", code, f"--config={config}"], capture_output=True, text=True)
    assert done.returncode == 2 and "config.stage must be one of" in done.stderr


# --- Mistakes that the real stage finds ---

TINY = "--config=tests/stages/tiny_grpo.py"
GSM8K = "--config=configs/grpo_zero.py:task=gsm8k"


def run_for_real(
    tmp_path: pathlib.Path, args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What `python -m r1jax.train` with these arguments writes to stderr; it must be one line, with exit code 2."""
    monkeypatch.chdir(ROOT)
    assert run(*args, f"--workdir={tmp_path / 'run'}") == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and output.err.count("\n") == 1, output.err
    assert not output.out and not (tmp_path / "run").exists()
    return output.err


@pytest.mark.parametrize(
    ("args", "messages"),
    [
        ([TINY, "--config.rollout.group_sise=4"], ['no key rollout.group_sise; did you mean "rollout.group_size"?']),
        (
            [TINY, '--config.rewards={"answr_reward": 1.0}'],
            ["config.rewards.answr_reward", "did you mean answer_reward"],
        ),
        (
            [TINY, "--config.train.micro_batch_size=12"],
            ["config.train.micro_batch_size = 12 must divide", "group_size", "= 32"],
        ),
        ([TINY, "--config.mesh.data=3"], ["config.mesh", "need 3 devices but there are 8"]),
        ([GSM8K, "--config.data.path=none.jsonl"], ["no such file: none.jsonl (config.data.path)"]),
        ([GSM8K], ["config.data.path must name a file when config.data.source is jsonl"]),
    ],
)
def test_a_mistake_in_a_real_config_gets_one_line(
    tmp_path: pathlib.Path,
    args: list[str],
    messages: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    said = run_for_real(tmp_path, args, monkeypatch, capsys)
    assert all(message in said for message in messages), said


@pytest.mark.parametrize("row", ['{"question": "1 + 1?", "answer": oops}', '["a list"]', '{"question": "1 + 1?"}'])
def test_a_malformed_row_is_named_by_file_and_line(
    tmp_path: pathlib.Path, row: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "2 + 2?", "answer": "#### 4"}\n\n' + row + "\n")
    said = run_for_real(tmp_path, [GSM8K, f"--config.data.path={path}"], monkeypatch, capsys)
    assert f"{path}:3: " in said and "config.data.on_error=skip" in said


def test_slots_that_do_not_divide_over_the_devices(
    tmp_path: pathlib.Path,
    tiny_model: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    args = [TINY, f"--config.model.name={tiny_model}", "--config.rollout.slots=12"]
    said = run_for_real(tmp_path, args, monkeypatch, capsys)
    assert "config.rollout.slots must be divisible by the 8 shards of the batch axes, got 12" in said


def test_a_prompt_beyond_the_limit_is_found_at_the_start(
    tmp_path: pathlib.Path,
    tiny_model: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    args = [TINY, f"--config.model.name={tiny_model}", "--config.rollout.max_prompt_tokens=12"]
    said = run_for_real(tmp_path, args, monkeypatch, capsys)
    assert "config.rollout.max_prompt_tokens = 12, but a prompt of config.data has 14 tokens" in said


def test_a_missing_model_names_the_command_that_fetches_it(tmp_path: pathlib.Path):
    """In a process of its own, whose hub is offline and whose cache is empty, as on a machine without a network."""
    command = [sys.executable, "-m", "r1jax.train", "--config=configs/grpo_zero.py"]
    command += ["--config.model.name=models/absent.gguf", "--config.model.fetch=python launch/fetch_demo.py"]
    command += [f"--workdir={tmp_path / 'run'}"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: no model models/absent.gguf") and done.stderr.count("\n") == 1
    assert f"{ROOT}/models/absent.gguf; `python launch/fetch_demo.py` makes it" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()
