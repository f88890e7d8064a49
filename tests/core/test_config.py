"""Config files, typed arguments, overrides and dataclasses: what is accepted, and the one line a mistake gets."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import textwrap
from typing import Any, Literal

import pytest
from ml_collections import ConfigDict, config_dict

from r1jax.core.config import apply_overrides, load_config, parse_args, to_json, unpack
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
        ("x = 1", "x.py: a config file defines a function get_config"),
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


# --- apply_overrides ---


def make_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 10
    config.rate = 0.1
    config.fast = False
    config.name = "a"
    config.betas = (0.9, 0.99)
    config.names = ("a",)
    config.limit = config_dict.placeholder(int)
    config.anything = None
    config.data = ConfigDict({"path": "x", "args": {"low": 1}})
    config.rewards = ConfigDict({"answer_reward": 1.0})
    return config.lock()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("steps", "3", 3),
        ("steps", "1e3", 1000),
        ("rate", "1", 1.0),
        ("rate", "1e-5", 1e-5),
        ("fast", "true", True),
        ("name", "3", "3"),
        ("name", "a=b,c:d", "a=b,c:d"),
        ("betas", "0.8,0.9", (0.8, 0.9)),
        ("betas", "(1, 0.5)", (1.0, 0.5)),
        ("names", "gsm8k,svamp", ("gsm8k", "svamp")),
        ("names", '["x", "y"]', ("x", "y")),
        ("names", "", ()),
        ("limit", "7", 7),
        ("limit", "none", None),
        ("anything", "2.5", 2.5),
        ("anything", "word", "word"),
        ("data.path", "y.jsonl", "y.jsonl"),
        ("data.args.low", "5", 5),
    ],
)
def test_overrides_take_the_type_of_the_present_value(key: str, text: str, value: Any):
    config = apply_overrides(make_config(), {key: text})
    got: Any = config
    for part in key.split("."):
        got = got[part]
    assert got == value and type(got) is type(value)


def test_a_section_is_replaced_by_a_dict():
    config = apply_overrides(make_config(), {"rewards": '{"pkg.mine:reward": 2, "format_reward": {"weight": 0.5}}'})
    assert config.rewards.to_dict() == {"pkg.mine:reward": 2, "format_reward": {"weight": 0.5}}
    assert config.is_locked


def test_an_override_reaches_what_refers_to_it():
    config = ConfigDict({"a": 1})
    config.b = config.get_ref("a") * 2
    assert apply_overrides(config.lock(), {"a": "5"}).b == 10


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("data.pth", "x", 'config has no key data.pth; did you mean "data.path"?'),
        ("path", "x", 'did you mean "data.path"?'),
        ("stepz", "1", 'did you mean "steps"?'),
        ("data.path.more", "x", "config has no key data.path.more"),
        ("qqqqqq", "x", "config has no key qqqqqq"),
        ("steps", "soon", 'config.steps must be a whole number, got "soon"'),
        ("rate", "soon", 'config.rate must be a number, got "soon"'),
        ("fast", "2", 'config.fast must be true or false, got "2"'),
        ("betas", "a,b", "config.betas must be a number"),
        ("limit", "x", "config.limit must be a whole number"),
        ("data", "x", "config.data is a section: set one of its keys (args, path)"),
    ],
)
def test_wrong_overrides(key: str, text: str, message: str):
    with pytest.raises(UserError) as caught:
        apply_overrides(make_config(), {key: text})
    assert message in str(caught.value) and "\n" not in str(caught.value)


# --- unpack ---


@dataclasses.dataclass(frozen=True)
class Optimizer:
    rate: float
    schedule: Literal["constant", "cosine"] = "constant"


@dataclasses.dataclass(frozen=True)
class Run:
    steps: int
    optimizer: Optimizer
    name: str = "x"
    fast: bool = False
    betas: tuple[float, float] = (0.9, 0.99)
    names: tuple[str, ...] = ()
    limit: int | None = None
    rewards: dict[str, Any] = dataclasses.field(default_factory=dict)


def test_unpack_builds_nested_dataclasses():
    section = ConfigDict({"steps": 3, "optimizer": {"rate": 1}, "names": ["a", "b"], "rewards": {"f": {"weight": 1}}})
    run = unpack(Run, section, "grpo")
    assert run == Run(3, Optimizer(1.0), names=("a", "b"), rewards={"f": {"weight": 1}})
    assert isinstance(run.optimizer.rate, float) and type(run.rewards["f"]) is dict


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 1}, 'config.grpo.stepz is not a known key; did you mean "steps"? (known: steps, optimizer'),
        ({"steps": "3"}, "config.grpo.steps must be a whole number, got '3'"),
        ({"steps": True}, "config.grpo.steps must be a whole number, got True"),
        ({"steps": 1.5}, "config.grpo.steps must be a whole number, got 1.5"),
        ({"fast": 1}, "config.grpo.fast must be true or false, got 1"),
        ({"name": None}, "config.grpo.name must be a text, got None"),
        ({"betas": (1.0,)}, "config.grpo.betas must hold 2 values, got (1.0,)"),
        ({"betas": (1.0, "a")}, "config.grpo.betas[1] must be a number, got 'a'"),
        ({"names": "a"}, "config.grpo.names must be"),
        ({"limit": "a"}, "config.grpo.limit must be a whole number or none, got 'a'"),
        ({"optimizer": {"rat": 1.0}}, "config.grpo.optimizer.rat is not a known key"),
        ({"optimizer": {}}, "config.grpo.optimizer.rate is missing: it must be a number"),
        ({"optimizer": 3}, "config.grpo.optimizer must be a section, got 3"),
        (
            {"optimizer": {"rate": 1.0, "schedule": "cosin"}},
            "config.grpo.optimizer.schedule must be one of 'constant', 'cosine', got 'cosin'",
        ),
    ],
)
def test_unpack_names_the_key(change: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        unpack(Run, {"steps": 1, "optimizer": {"rate": 1.0}} | change, "grpo")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_unpack_of_the_root_names_plain_keys():
    with pytest.raises(UserError, match=r"config\.steps is missing"):
        unpack(Run, {"optimizer": {"rate": 1.0}})


def test_unpack_looks_into_optional_sections():
    @dataclasses.dataclass(frozen=True)
    class Outer:
        inner: Optimizer | None = None

    assert unpack(Outer, {"inner": {"rate": 1.0}}).inner == Optimizer(1.0)
    assert unpack(Outer, {"inner": None}).inner is None
    with pytest.raises(UserError, match=r"config\.inner\.rat is not a known key"):
        unpack(Outer, {"inner": {"rat": 1.0}})


# --- to_json ---


def test_to_json_is_plain_and_ordered():
    config = ConfigDict({"b": (1, 2), "a": {"y": None, "x": float("inf")}})
    config.c = config.a.get_ref("x")
    text = to_json(config)
    assert json.loads(text) == {"a": {"x": "inf", "y": None}, "b": [1, 2], "c": "inf"}
    assert text.index('"a"') < text.index('"b"') and text.endswith("\n")


def test_to_json_refuses_what_is_no_data():
    with pytest.raises(UserError, match=r"config\.a\.f must be plain data"):
        to_json(ConfigDict({"a": {"f": len}}))
