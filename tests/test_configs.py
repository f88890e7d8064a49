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
import jax.numpy as jnp
import pytest
from flax import nnx

from r1jax.core.config import load_config
from r1jax.core.structs import Request
from r1jax.data.packing import RowShape
from r1jax.learner.optimizer import make_optimizer
from r1jax.learner.policy import Scoring, make_loss, score_rows
from r1jax.learner.state import abstract_state
from r1jax.learner.step import Learner
from r1jax.models import llama
from r1jax.models.layers import Dtypes
from r1jax.models.transformer import logical_axes, split
from r1jax.rollout.engine import Engine
from r1jax.rollout.scheduler import Scheduler
from r1jax.rollout.slots import EngineConfig
from r1jax.stages.grpo_config import GRPOConfig, read_config

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
    ]
}
SPECS = [f"{file}{':' * bool(arg)}{arg}" for file in FILES for arg in VARIANTS.get(file.stem, [""])]
SIZES = {"HuggingFaceTB/SmolLM2-135M-Instruct": llama.VARIANTS["smollm2_135m"]}
PREFIX, PROMPT = tuple(range(100, 150)), 64  # stand-ins for the data's prompts: the part they share, and the rest

# Loads each spec where importing jax fails, and prints the config.
PARSE = """
import json, sys
sys.modules["jax"] = None
from r1jax.core.config import load_config, to_json
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
    assert parse_without_jax()[spec]["stage"] in {file.stem for file in (ROOT / "r1jax/stages").glob("*.py")}


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
    """Every program of its stage, abstractly, at the shapes that it asks for."""
    config = load_config(spec)
    trace = {"grpo": trace_grpo}.get(config.stage)
    assert trace is not None, f"tests/test_configs.py cannot trace the stage {config.stage}"
    trace(read_config(config), whole=spec.endswith(".py"))


def trace_grpo(settings: GRPOConfig, *, whole: bool) -> None:
    """`whole`: at the model's full depth; else two of its equal layers tell the same in a tenth of the time."""
    model = settings.model
    assert model.hub in SIZES, f"tests/test_configs.py does not know the sizes of {model.hub!r}"
    sizes = SIZES[model.hub] if whole else dataclasses.replace(SIZES[model.hub], num_layers=2)
    options = {"scan_layers": model.scan_layers, "remat": model.remat}
    dtypes = Dtypes(model.param_dtype, model.dtype)
    abstract = nnx.eval_shape(lambda: llama.build(sizes, rngs=nnx.Rngs(0), dtypes=dtypes, **options))
    graph, params = split(abstract)
    trace_rollout(settings, graph, params)
    trace_update(settings, graph, params, logical_axes(abstract))


def trace_rollout(settings: GRPOConfig, graph: Any, params: Any) -> None:
    rollout = settings.rollout
    longest = max(rollout.max_prompt_tokens, len(PREFIX) + PROMPT)
    shapes = EngineConfig(rollout.slots, longest, rollout.max_new_tokens, rollout.prefill_batch, prefix=PREFIX)
    engine = Engine(graph, shapes)
    slots = jax.eval_shape(engine._init, params)
    prefix = jax.eval_shape(engine._prefix, params)
    tokens, fill = next(Scheduler([Request((*PREFIX, 1), rollout.sampling((2,)))], shapes).refill())
    prompts = jax.eval_shape(engine._prefill, params, prefix, tokens)
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    for after in (
        jax.eval_shape(engine._restart, slots),
        jax.eval_shape(engine._insert, slots, prompts, fill),
        jax.eval_shape(engine._decode, params, prefix, slots, 1, filtered=False),
        jax.eval_shape(engine._decode, params, prefix, slots, 1, filtered=True),
    ):
        assert describe(after) == describe(slots)
    assert slots.tokens.shape == (rollout.slots, rollout.max_new_tokens)


def trace_update(settings: GRPOConfig, graph: Any, params: Any, axes: Any) -> None:
    train, rollout = settings.train, settings.rollout
    shape = RowShape(PROMPT, rollout.max_new_tokens, train.completions_per_row, len(PREFIX))
    rows = train.micro_batch_size // train.completions_per_row
    fed = {name: (rows, shape.length) for name in ("tokens", "positions", "segments", "prefixes")}
    aimed = {name: (rows, shape.targets) for name in ("index", "targets")}
    values = ["weights", "advantages", "sampler_logprobs"]
    values += ["old_logprobs"] * (train.updates_per_step > 1)
    values += ["reference_logprobs"] * (settings.loss.kl_coefficient > 0)
    batch = {name: jax.ShapeDtypeStruct(size, jnp.int32) for name, size in {**fed, **aimed}.items()}
    batch |= {name: jax.ShapeDtypeStruct((rows, shape.targets), jnp.float32) for name in values}

    scoring = Scoring(rollout.temperature, train.logits_chunk, PREFIX)
    optimizer = make_optimizer(settings.optimizer, settings.steps * train.updates_per_step)
    state = abstract_state(params, axes, optimizer)
    learner = Learner(make_loss(graph, settings.loss, scoring, on_policy=train.updates_per_step == 1), optimizer)
    gradients, loss, _ = jax.eval_shape(learner.accumulate, state.params, state.params, batch)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    after, norm = jax.eval_shape(learner.apply, state, gradients)
    assert norm.shape == ()
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
    logprobs, _ = jax.eval_shape(lambda params, batch: score_rows(graph, params, batch, scoring), params, batch)
    assert (logprobs.shape, logprobs.dtype) == ((rows, shape.targets), jnp.float32)
