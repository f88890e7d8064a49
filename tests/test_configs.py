"""Every config is a document that parses without jax, fits its stage, and traces at its own shapes without an array."""

import ast
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import pytest

from r1jax.aot.programs import list_programs
from r1jax.core.config import load_config
from r1jax.core.sharding import current_layout, make_mesh, use_layout, use_mesh
from r1jax.runs.abstract_model import Prompts
from r1jax.stages.registry import STAGES, resolve_run

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "configs").glob("*.py"))
# For each config with arguments the ways to give them that its first lines promise.
VARIANTS = {
    "grpo_zero": [
        "",
        "template=chat",
        "task=gsm8k",
        "task=gsm8k,template=chat",
        "task=chain_sum",
        "task=chain_sum,template=chat",
    ],
    "distill": [
        "",
        "teacher=Qwen/Qwen2.5-1.5B,student=Qwen/Qwen2.5-0.5B,data=x.jsonl,reward=answer,samples=4,epochs=1",
        "tokens=32,lora=8",
    ],
    "distill_qwen7b": ["model=meta-llama/Llama-3.1-8B", "rows=2"],
    "distill_traces": ["", "template=r1", "layers=20"],
    "dpo": ["", "data=x.jsonl,model=Qwen/Qwen2.5-1.5B,loss=kto,steps=3", "loss=simpo,lora=8"],
    "grpo_colab": ["", "model=Qwen/Qwen2.5-1.5B", "lora=8,tokens=512,dtype=float16"],
    "grpo_guess": ["", "seed=1"],
    "grpo_harness": ["", "python=/usr/bin/python3,seed=1"],
    "grpo_tools": ["", "tool=none,seed=1"],
    "grpo_digits": ["", "loss=r1", "loss=gspo,seed=1", "reward=self_rank"],
    "grpo_jsonl": [
        "",
        "data=x.jsonl,model=Qwen/Qwen2.5-0.5B,reward=answer,steps=2",
        "data=x.jsonl,reward=r1jax.rewards.answers:number_reward,tokens=32,lora=8",
    ],
    "methods": ["", "seed=1,work=0.5,teacher=runs/mine"],
    "overoptimization": ["", "many=4000,few=100,steps=50"],
    "r1_pipeline": [
        "",
        "size=smollm2",
        "size=671b,data=files",
        "last=reward_model",
        "last=reward_model,size=671b,data=files",
        "recipe=multi,lineage=seed,seed=1",
    ],
    "r1_zero_671b": ["", "length=32768,slots=4", "chips=128"],
    "reward_model": ["", "data=x.jsonl,model=Qwen/Qwen2.5-1.5B,steps=3", "lora=8"],
    "grpo_8b_h100": ["", "model=Qwen/Qwen3-30B-A3B"],
    "sft_8b_h100": ["", "model=Qwen/Qwen3-30B-A3B,length=32768,rows=8"],
    "sft_671b": ["", "length=32768,rows=1", "chips=128"],
    "sft_chat": ["", "data=x.jsonl,model=Qwen/Qwen2.5-1.5B,epochs=1,lora=8"],
    "sft_gsm8k": ["", "lora=8"],
}
SPECS = [f"{file}{':' * bool(arg)}{arg}" for file in FILES for arg in VARIANTS.get(file.stem, [""])]
PREFIX = tuple(range(100, 150))  # stands in for what the data's prompts have in common

# Loads each spec where importing jax fails, and prints the config.
PARSE = """
import json, sys
sys.modules["jax"] = None
from r1jax.core.config import load_config
from r1jax.core.sections import to_json
for spec in sys.argv[1:]:
    config = load_config(spec)
    assert config.is_locked, spec
    print(json.dumps([spec, json.loads(to_json(config))]))
"""


@functools.cache
def parse_without_jax() -> dict[str, dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PARSE, *SPECS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


def short(spec: str) -> str:
    return spec.rpartition("/")[2]


@pytest.mark.parametrize("spec", SPECS, ids=short)
def test_it_parses_without_jax(spec: str):
    assert parse_without_jax()[spec]["stage"] in STAGES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_a_document(file: pathlib.Path):
    """Its first lines give the exact command and explain every argument, and each argument has a variant here."""
    tree = ast.parse(file.read_text())
    text = ast.get_docstring(tree) or ""
    assert f"python -m r1jax.train --config=configs/{file.name}" in text
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    arguments = {
        keyword.arg: keyword.value
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "parse_args"
        for keyword in call.keywords
    }
    for name, default in arguments.items():
        assert any(line.strip().startswith(f"{name} ") for line in text.splitlines()), f"{name} is not explained"
        assert str(ast.literal_eval(default)) in text, f"the default of {name} is not told"
        given = [variant for variant in VARIANTS.get(file.stem, []) if f"{name}=" in variant]
        assert given, f"tests/test_configs.py tries no variant with {name}"


@pytest.mark.parametrize("spec", SPECS, ids=short)
def test_it_traces(spec: str):
    """Every program of its stage, abstractly, at the shapes that it asks for: scanned layers at the model's full depth,
    two of equal layers where they are traced one by one or the spec has arguments. They tell the same in a tenth of the
    time; `tests/aot/test_dry_run.py` describes every model at its full depth.
    """
    config = load_config(spec)
    with config.unlocked():
        for stage in config.get("stages", {"": config}).values():
            for section in ("model", "student", "teacher"):
                if section in stage and not (spec.endswith(".py") and stage[section].get("scan_layers", False)):
                    stage[section].sizes = {**stage[section].get("sizes", {}), "num_layers": 2}
    settings = resolve_run(config).settings
    mesh = dataclasses.replace(settings.mesh, expert=min(settings.mesh.expert, 2))  # of eight pretend devices
    with use_mesh(make_mesh(mesh)):
        for program in list_programs(settings, Prompts(PREFIX)):
            with use_layout(program.layout or current_layout()):
                assert jax.tree.leaves(jax.eval_shape(program.function, *program.arguments, **program.keywords))


def test_the_example_data_is_what_its_script_makes(tmp_path: pathlib.Path):
    folder = ROOT / "configs/data"
    script = tmp_path / "make.py"
    script.write_text((folder / "make.py").read_text())
    subprocess.run([sys.executable, str(script)], check=True)
    names = {path.name for path in folder.glob("*.jsonl")}
    assert names == {path.name for path in tmp_path.glob("*.jsonl")} and len(names) == 4
    for name in names:
        assert (folder / name).read_text() == (tmp_path / name).read_text(), name
    asked = {row["messages"][0]["content"] for row in map(json.loads, (folder / "units.jsonl").open())}
    held_out = {row["prompt"][0]["content"] for row in map(json.loads, (folder / "units_held_out.jsonl").open())}
    assert len(asked) == 300 and len(held_out) == 100 and not asked & held_out


def test_the_paper_s_pipeline_begins_as_the_run_that_is_known_to_fit():
    """What its programs are made of, so that one table of what fits (docs/pods.md) is true of both."""
    alone = resolve_run(load_config("configs/r1_zero_671b.py")).values
    stage = resolve_run(load_config("configs/r1_pipeline.py:size=671b")).values["stages"]["zero"]
    for section in ("model", "mesh", "rollout", "train", "loss", "reference"):
        assert stage[section] == alone[section], section
