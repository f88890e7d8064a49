"""Settings from dataclasses, a file and flags: what wins, where a value comes from, the one line a mistake gets."""

import dataclasses
from typing import Any, ClassVar, Literal

import pytest
from ml_collections import ConfigDict, config_dict

from r1jax.core.errors import UserError
from r1jax.core.resolution import Origin, Presets, resolve


@dataclasses.dataclass(frozen=True)
class Source:
    path: str
    rows: int = 0


@dataclasses.dataclass(frozen=True)
class Data:
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    path: str = ""
    shuffle: bool = True
    example: Source | None = None
    sources: dict[str, Source] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Loss:
    preset: Literal["", "soft", "hard"] = ""
    clip: float = 0.2
    scale: str = "group"


@dataclasses.dataclass(frozen=True)
class Run:
    PRESETS: ClassVar[Presets] = Presets(
        "loss.preset",
        {"soft": {"loss.clip": 1.0, "loss.scale": "none"}, "hard": {"loss.clip": 10.0, "steps": 16}},
    )

    steps: int = 1
    rate: float = 1e-3
    fast: bool = False
    name: str = "x"
    betas: tuple[float, float] = (0.9, 0.99)
    names: tuple[str, ...] = ()
    limit: int | None = None
    anything: Any = None
    data: Data = Data()
    rewards: dict[str, Any] = dataclasses.field(default_factory=dict)
    loss: Loss = Loss()


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


def read(flags: dict[str, str]) -> Run:
    return resolve(Run, make_config(), flags).settings


# --- Flags ---


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
        ("data.shuffle", "false", False),  # a key that the file does not say
        ("loss.preset", "soft", "soft"),  # of a section that the file does not have
    ],
)
def test_flags_take_the_type_of_their_field(key: str, text: str, value: Any):
    got: Any = read({key: text})
    for part in key.split("."):
        got = getattr(got, part)
    assert got == value and type(got) is type(value)


def test_a_key_of_a_dict_takes_the_type_of_its_value():
    settings = read({"data.args.low": "5", "rewards.answer_reward": "2"})
    assert settings.data.args == {"low": 5} and settings.rewards == {"answer_reward": 2.0}


def test_a_section_is_replaced_by_a_dict():
    settings = read({"rewards": '{"pkg.mine:reward": 2, "format_reward": {"weight": 0.5}}'})
    assert settings.rewards == {"pkg.mine:reward": 2, "format_reward": {"weight": 0.5}}
    settings = read({"data": '{"shuffle": false}'})
    assert settings.data == Data(shuffle=False), "what the file says of it is gone"


def test_keys_with_dots_and_keys_inside_sections_of_a_dict():
    file = {"rewards": {"pkg.mine:reward": {"weight": 1.0}}, "data": {"sources": {"a": {"path": "x"}}}}
    settings = resolve(Run, file, {"rewards.pkg.mine:reward.weight": "3", "data.sources.a.rows": "4"}).settings
    assert settings.rewards == {"pkg.mine:reward": {"weight": 3.0}}
    assert settings.data.sources == {"a": Source("x", 4)}
    settings = resolve(Run, file, {"data.example": '{"path": "y"}', "data.example.rows": "2"}).settings
    assert settings.data.example == Source("y", 2)


def test_a_flag_reaches_what_refers_to_it():
    config = ConfigDict({"steps": 1})
    config.limit = config.get_ref("steps") * 2
    settings = resolve(Run, config.lock(), {"steps": "5"}).settings
    assert (settings.steps, settings.limit) == (5, 10)
    assert config.steps == 1, "the file's own config stays as it is"


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
        ("data", "x", "config.data is a section: set one of its keys (args, path"),
        ("rewards", "x", "config.rewards is a section: set one of its keys (answer_reward)"),
        ("data.args.hgih", "3", "config has no key data.args.hgih"),
        ("loss.preset", "firm", "config.loss.preset must be one of '', 'soft', 'hard', got 'firm'"),
        ("betas", "0.5", "config.betas must hold 2 values, got (0.5,)"),
    ],
)
def test_wrong_flags(key: str, text: str, message: str):
    with pytest.raises(UserError) as caught:
        read({key: text})
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"stepz": 1}, 'config.stepz is not a known key; did you mean "steps"?'),
        ({"data": {"pth": "x"}}, 'config.data.pth is not a known key; did you mean "path"?'),
        ({"data": 3}, "config.data must be a section, got 3"),
        ({"data": {"sources": {"a": {}}}}, "config.data.sources.a.path is missing"),
        ({"rate": None}, "config.rate must be a number, got None"),
        ({"pools": {"skip": 1}}, "config.pools is now called config.data"),
        ({"data": {"old": 1}}, "config.data.old is now called config.data.path"),
    ],
)
def test_wrong_files(file: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        resolve(Run, file, renamed={"pools": "data", "data.old": "data.path"})
    assert message in str(caught.value)


def test_a_flag_with_a_former_name_gets_the_new_one():
    with pytest.raises(UserError, match=r"config\.data\.old is now called config\.data\.path"):
        resolve(Run, {}, {"data.old": "x"}, renamed={"data.old": "data.path"})


# --- Presets ---


def test_a_preset_in_the_file_yields_to_the_file():
    loss = resolve(Run, {"loss": {"preset": "soft", "clip": 0.5}}).settings.loss
    assert loss == Loss("soft", 0.5, "none")


def test_a_preset_by_a_flag_outranks_the_file_for_the_keys_that_it_sets():
    resolved = resolve(Run, {"steps": 3, "loss": {"clip": 0.5, "scale": "batch"}}, {"loss.preset": "hard"})
    assert resolved.settings.loss == Loss("hard", 10.0, "batch") and resolved.settings.steps == 16
    assert resolved.origins["loss.clip"] == Origin("preset hard", (("default", 0.2), ("file", 0.5)))


def test_an_explicit_flag_always_wins():
    for flags in ({"loss.preset": "hard", "loss.clip": "3"}, {"loss.clip": "3", "loss.preset": "hard"}):
        assert resolve(Run, {"loss": {"clip": 0.5}}, flags).settings.loss.clip == 3.0
    loss = resolve(Run, {"loss": {"preset": "soft", "clip": 0.5}}, {"loss.clip": "3"}).settings.loss
    assert loss == Loss("soft", 3.0, "none")


def test_another_preset_by_a_flag_leaves_nothing_of_the_file_s():
    file = {"loss": {"preset": "hard"}}
    assert resolve(Run, file, {"loss.preset": "soft"}).settings.steps == 1
    assert resolve(Run, file, {"loss.preset": ""}).settings.loss == Loss()


def test_none_leaves_a_key_to_the_preset():
    assert resolve(Run, {"loss": {"preset": "soft", "clip": None}}).settings.loss.clip == 1.0
    assert resolve(Run, {"loss": {"scale": None}}).settings.loss.scale == "group"


# --- Origins ---


def test_every_value_has_an_origin_and_what_it_overrides():
    resolved = resolve(Run, make_config(), {"steps": "3"})
    origins = resolved.origins
    assert origins["steps"] == Origin("flag", (("default", 1), ("file", 10)))
    assert origins["rate"] == Origin("file", (("default", 1e-3),))
    assert origins["loss.clip"] == Origin("default")
    values = resolved.values
    assert {key.partition(".")[0] for key in origins} == set(values)
    assert values["loss"] == {"preset": "", "clip": 0.2, "scale": "group"} and values["steps"] == 3
    assert resolve(Run, values).settings == resolved.settings
