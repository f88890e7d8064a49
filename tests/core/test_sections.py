"""Sections as dataclasses, and values as JSON: what is accepted, and the one line a mistake gets."""

import dataclasses
import json
import math
from typing import Any, Literal

import pytest
from ml_collections import ConfigDict

from r1jax.core.errors import UserError
from r1jax.core.sections import parse_text, to_json, to_values, unpack

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


def test_numbers_that_json_lacks_come_back():
    @dataclasses.dataclass(frozen=True)
    class Bound:
        high: float = math.inf
        low: float = -math.inf

    assert unpack(Bound, json.loads(to_json(to_values(Bound())))) == Bound()


# --- parse_text ---


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("2", Literal[1, 2], 2),
        ("b", Literal["a", "b"], "b"),
        ("none", str | None, None),
        ("x", str | None, "x"),
        ("3", int | None, 3),
        ("fsdp,tensor", str | tuple[str, ...] | None, "fsdp,tensor"),
        ('["fsdp", "tensor"]', str | tuple[str, ...] | None, ("fsdp", "tensor")),
        ("((1, 4), (3, 9))", tuple[tuple[int, int], ...], ((1, 4), (3, 9))),
        ("[[1, 0.5]]", tuple[tuple[int, float], ...], ([1, 0.5],)),
        ('{"a": 1}', dict[str, Any], {"a": 1}),
        ("0.9,1", tuple[float, float], (0.9, 1.0)),
    ],
)
def test_a_text_takes_the_type_of_its_hint(text: str, kind: Any, value: Any):
    assert parse_text(text, kind, "config.x") == value
