"""The train command before any training: help, one clear line for each mistake, exit codes, and no jax until needed."""

import pathlib
import subprocess
import sys
import textwrap

import pytest

from r1jax import stages, train

CONFIG = """
    from ml_collections import ConfigDict
    from r1jax.core.config import parse_args

    def get_config(arg=""):
        args = parse_args(arg, steps=10)
        return ConfigDict({"stage": "probe", "steps": args.steps, "data": {"path": "a.jsonl", "shuffle": False}})
"""
# A stage of its own: writes down what it was given, or ends as it is told to.
PROBE = """
    from r1jax.core.errors import UserError

    def run(config, workdir):
        if config.steps == 0:
            raise UserError("config.steps must be positive,\\n  got 0")
        if config.steps < 0:
            raise KeyboardInterrupt
        print(config.steps, config.data.path, config.data.shuffle, workdir)
"""


@pytest.fixture
def config(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config file for the stage `probe`."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "probe.py").write_text(textwrap.dedent(PROBE))
    (tmp_path / "stages" / "empty.py").write_text("")
    (tmp_path / "small.py").write_text(textwrap.dedent(CONFIG))
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(tmp_path / "stages")])
    yield str(tmp_path / "small.py")
    for name in ("probe", "empty"):
        sys.modules.pop(f"r1jax.stages.{name}", None)
        stages.__dict__.pop(name, None)


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
        (["--config={}", "--config.stage=empty"], "error: config.stage=empty is no stage that trains"),
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


def test_ctrl_c_is_one_line(config: str, capsys: pytest.CaptureFixture):
    assert run(f"--config={config}", "--config.steps=-1") == 130
    assert capsys.readouterr().err.strip() == "stopped; the same command resumes from the last checkpoint"


def test_help_is_for_newcomers():
    done = subprocess.run([sys.executable, "-m", "r1jax.train", "--help"], capture_output=True, text=True, check=True)
    for words in ("python -m r1jax.train --config=configs/grpo_zero.py", "--config:", "--workdir:", "report.html"):
        assert words in done.stdout
    assert not done.stderr


def test_a_mistake_from_the_shell(config: str):
    command = [sys.executable, "-m", "r1jax.train", f"--config={config}", "--config.stepz=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == 'error: config has no key stepz; did you mean "steps"?\n'


def test_a_wrong_config_is_found_without_jax(config: str):
    code = "import sys; sys.modules['jax'] = None; from r1jax import train; sys.exit(train.main(sys.argv))"
    done = subprocess.run([sys.executable, "-c", code, f"--config={config}"], capture_output=True, text=True)
    assert done.returncode == 2 and "config.stage must be one of" in done.stderr
