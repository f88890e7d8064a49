"""config.json of former formats: keys under their new names, defaults of their time, and what was a run's is one."""

import json
import pathlib
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.core.resolution import list_defaults
from r1jax.core.sections import flatten
from r1jax.eval.saved_config import (
    FORMAT,
    FORMER_DEFAULTS,
    RENAMED_STAGES,
    SavedConfig,
    read_config_file,
    translate,
)
from r1jax.runs.workdir import FREE_KEYS
from r1jax.stages.registry import find_stage

# What the dataclasses of commit 5153420 took for absent keys; its make.py says how it was read from them.
FORMER = json.loads((pathlib.Path(__file__).parent.parent / "fixtures/workdir_format1/defaults.json").read_text())


def test_keys_of_format_1_have_their_new_names():
    former = {
        "stage": "grpo",
        "rollout": {"limits": [[1, 4]], "temperatures": [], "slots": 8},
        "sampling": {"rounds": 3, "filter_truncated": True},
        "pools": {"skip": 0.5},
        "loss": {"correction": "token_mask", "correction_low": 0.5, "correction_high": 3.0},
        "train": {"zero_spread": 0.1},
    }
    assert translate(former) == {
        "stage": "grpo",
        "rollout": {"max_new_tokens_schedule": [[1, 4]], "temperature_schedule": [], "slots": 8},
        "dynamic_sampling": {"max_rounds": 3, "filter_truncated": True},
        "curriculum": {"skip": 0.5},
        "loss": {
            "importance_correction": "token_mask",
            "importance_correction_low": 0.5,
            "importance_correction_high": 3.0,
        },
        "train": {"min_group_std": 0.1},
    }
    assert "rounds" in former["sampling"], "what was read stays as it is"
    stages = {"a": {"stage": "draw"}, "b": {"stage": "collect", "pools": {}}}
    found = translate({"stage": "pipeline", "stages": stages})["stages"]
    assert found == {"a": {"stage": "synthesize"}, "b": {"stage": "rejection_sampling", "curriculum": {}}}


def test_a_file_of_today_s_format_is_taken_as_it_is(tmp_path: pathlib.Path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"format": FORMAT, "stage": "grpo", "pools": 1, "model": {"path": "a"}}))
    assert read_config_file(path) == SavedConfig({"stage": "grpo", "pools": 1, "model": {"path": "a"}}, FORMAT)
    path.write_text("[]")
    with pytest.raises(UserError, match="must be a JSON object, got list"):
        read_config_file(path)


def test_models_of_format_2_have_one_name(tmp_path: pathlib.Path):
    path = tmp_path / "config.json"
    former = {"path": "models/x.gguf", "hub": "org/x", "fetch": "python get.py", "preset": "", "layers": 0}
    stages = {
        "pools": {"teacher": {**former, "path": ""}, "student": {**former, "preset": "tiny_llama"}},
        "a": {"model": former, "pools": 1},
    }
    path.write_text(json.dumps({"format": 2, "stage": "pipeline", "stages": stages}))
    kept = {"fetch": "python get.py", "preset": "", "layers": 0}
    assert read_config_file(path).values["stages"] == {
        "pools": {
            "teacher": {"name": "org/x", **kept, "fetch": ""},  # which made the file at `path`
            "student": {"tokenizer": "models/x.gguf", **kept, "preset": "tiny_llama"},
        },
        "a": {"model": {"name": "models/x.gguf", **kept}, "pools": 1},
    }


@pytest.mark.parametrize("name", FORMER)
def test_every_default_of_format_1_is_today_s_or_in_the_table(name: str):
    stage, _, method = name.partition("/")
    stage = RENAMED_STAGES.get(stage, stage)
    root = find_stage({"stage": stage, "method": method}).CONFIG
    values = json.loads(json.dumps({".".join(path): value for path, value in list_defaults(root)}))
    today = {**flatten(values), **FORMER_DEFAULTS.get(stage, {})}
    former: dict[str, Any] = {}
    for dotted, value in FORMER[name].items():
        *parents, last = dotted.split(".")
        section = former
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    for key, value in flatten(translate(former)).items():
        if key.partition(".")[0] not in FREE_KEYS:  # those are not compared, whatever they are
            assert today[key] == value, key
