"""Config files and their typed arguments: what is accepted, and the one line a mistake gets."""

import pathlib
import subprocess
import sys
import textwrap

import pytest

from r1jax.core.config import find_shipped, load_config, parse_args
from r1jax.core.errors import UserError


@pytest.fixture
def write(tmp_path: pathlib.Path):
    """Writes a config file and returns its path."""

    def write_file(text: str, name: str = "x.py") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write_file


PLAIN = """
    from ml_collections import ConfigDict
    from r1jax.core.config import parse_args

    def get_config(arg=""):
        args = parse_args(arg, size="tiny", steps=10, rate=1e-3, fast=False)
        config = ConfigDict()
        config.stage = "grpo"
        config.steps = args.steps
        config.size = args.size
        config.rate = args.rate
        config.data = ConfigDict({"path": "a.jsonl", "batch": 4})
        return config
"""


# --- parse_args ---


def test_arguments_take_the_type_of_their_default():
    args = parse_args("size=big,steps=3,rate=2,fast", size="tiny", steps=10, rate=1e-3, fast=False, kept=1)
    assert args.to_dict() == {"size": "big", "steps": 3, "rate": 2.0, "fast": True, "kept": 1}
    assert isinstance(args.rate, float)


@pytest.mark.parametrize("arg", ["", None])
def test_no_arguments_give_the_defaults(arg: str | None):
    assert parse_args(arg, a=1).a == 1


@pytest.mark.parametrize(("text", "value"), [("true", True), ("no", False), ("1", True), ("False", False)])
def test_bools(text: str, value: bool):
    assert parse_args(f"on={text}", on=not value).on is value


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("stepz=3", 'unknown config argument "stepz"; did you mean "steps"?'),
        ("stepz=3", "known, with defaults: steps=10"),
        ("steps=many", 'argument steps must be a whole number, got "many"'),
        ("steps=1.5", "whole number"),
        ("rate=fast", "argument rate must be a number"),
        ("fast=perhaps", 'argument fast must be true or false, got "perhaps"'),
        ("steps", "needs a value"),
    ],
)
def test_wrong_arguments(arg: str, message: str):
    with pytest.raises(UserError) as caught:
        parse_args(arg, steps=10, rate=0.5, fast=True)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# --- load_config ---


def test_load_config_passes_the_arguments_and_locks(write):
    path = write(PLAIN)
    assert load_config(path).steps == 10
    config = load_config(f"{path}:steps=3,size=big")
    assert (config.steps, config.size, config.rate) == (3, "big", 1e-3)
    with pytest.raises(AttributeError):
        config.data.new = 1


def test_load_config_without_parameter(write):
    path = write("from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'a': 1})\n")
    assert load_config(path).a == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "x.py: a config file must define a function get_config"),
        ("def get_config(arg):\n    return {}", "must return an ml_collections.ConfigDict, got dict"),
        ("def get_config(arg):\n    return 1 / 0", "x.py:2: ZeroDivisionError"),
        ("import no_such_module", "x.py:1: ModuleNotFoundError"),
        ("def get_config(arg)\n    pass", "x.py:1: SyntaxError"),
    ],
)
def test_broken_files(write, text: str, message: str):
    with pytest.raises(UserError) as caught:
        load_config(write(text))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["no/such.py", "no/such.py:a=1", "README.md", "", "."])
def test_missing_file(spec: str):
    with pytest.raises(UserError, match="no such config file"):
        load_config(spec)


def test_shipped_configs_are_found_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spec in ("configs/grpo_zero.py", "grpo_zero.py", "configs/grpo_zero.py:template=chat"):
        assert load_config(spec).stage == "grpo"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "grpo_zero.py").write_text(textwrap.dedent(PLAIN))
    assert load_config("configs/grpo_zero.py").size == "tiny", "a file that is there is the one that is meant"
    with pytest.raises(UserError, match="shipped: .*grpo_zero.py"):
        load_config("elsewhere/grpo_zero.py")


def test_unknown_argument_names_the_file(write):
    with pytest.raises(UserError, match=r'x\.py: unknown config argument "stepz"'):
        load_config(write(PLAIN) + ":stepz=3")


def test_configs_load_where_importing_jax_fails(write):
    code = (
        "import sys; sys.modules['jax'] = None; sys.modules['jaxlib'] = None\n"
        "from r1jax.core.config import load_config\n"
        f"print(load_config({write(PLAIN)!r}).steps)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "10"


def test_shipped_data_is_found_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "configs/data/sums.jsonl"
    shipped = pathlib.Path(__file__).parents[2] / name
    assert pathlib.Path(find_shipped(name)) == shipped and shipped.is_file()
    assert find_shipped("configs/data/none.jsonl") == "configs/data/none.jsonl"
    (tmp_path / "configs/data").mkdir(parents=True)
    (tmp_path / name).write_text("")
    assert find_shipped(name) == name, "one's own goes first"
