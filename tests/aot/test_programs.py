"""Programs of a run from its config alone: the run's own, at its shapes and places, for other platforms too."""

import dataclasses
import math
import types
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from r1jax.aot.programs import list_programs
from r1jax.core.config import load_config
from r1jax.core.errors import UserError
from r1jax.core.sharding import MeshConfig, current_layout, make_mesh, use_layout, use_mesh
from r1jax.core.structs import Program
from r1jax.models.families import llama
from r1jax.runs.sampler import make_engine_config
from r1jax.stages.registry import resolve_run
from tests.stages.pod_grpo import get_config


@pytest.fixture(scope="module")
def programs() -> dict[str, Program]:
    settings = resolve_run(get_config()).settings
    with use_mesh(make_mesh(settings.mesh)):
        return {program.name: program for program in list_programs(settings)}


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_every_program_of_a_grpo_run_is_there(programs: dict[str, Program]) -> None:
    assert list(programs) == ["accumulate", "apply", "logprobs", "weights", "prefill", "insert", "decode", "collect"]
    params, gradients, frozen, batch = programs["accumulate"].arguments
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {np.dtype("float32")}
    assert {name: x.shape for name, x in batch.items() if name in ("tokens", "targets")} == {
        "tokens": (16, 32 + 4 * 32),
        "targets": (16, 4 * 32),
    }
    assert list(frozen) == ["reference"] and shapes(frozen["reference"]) == shapes(params)
    assert "reference_logprobs" in batch and "old_logprobs" not in batch
    for name, sizes in {"weights": {"data": 2, "fsdp": 4}, "decode": {"data": 8, "fsdp": 1}}.items():
        for leaf in jax.tree.leaves(programs[name].arguments):
            assert leaf.sharding.mesh.shape == {**leaf.sharding.mesh.shape, **sizes}


def test_states_go_round(programs: dict[str, Program]) -> None:
    """What a program gives is what it takes the next time, in shape and type."""
    for name, taken in {"apply": 0, "insert": 0, "decode": 2}.items():
        program = programs[name]
        with use_layout(program.layout or current_layout()):
            given = jax.eval_shape(program.function, *program.arguments, **program.keywords)
        state = given[0] if name == "apply" else given
        assert shapes(state) == shapes(program.arguments[taken])


def test_slots_lie_where_the_engine_puts_them(programs: dict[str, Program]) -> None:
    """The compiled decode step hands its slots back in the places that were assumed: nothing moves between calls."""
    program = programs["decode"]
    with use_layout(program.layout):
        compiled = program.function.lower(*program.arguments, **program.keywords).compile()
    for given, taken in zip(
        jax.tree.leaves(compiled.output_shardings), jax.tree.leaves(program.arguments[2]), strict=True
    ):
        assert given.is_equivalent_to(taken.sharding, len(taken.shape))


def test_useful_flops_are_those_of_the_formula(programs: dict[str, Program]) -> None:
    sizes = llama.Config()
    kv = sizes.num_kv_heads * sizes.head_dim
    attention = 2 * sizes.hidden_size * (sizes.hidden_size + kv)
    body = sizes.num_layers * (attention + 3 * sizes.hidden_size * sizes.intermediate_size)
    head = sizes.hidden_size * sizes.vocab_size
    pairs = 16 * (32**2 / 2 + 4 * (32 * 32 + 32**2 / 2))
    tokens, targets = 16 * 160, 16 * 128
    pair = sizes.num_layers * 4 * sizes.num_heads * sizes.head_dim
    assert programs["accumulate"].useful_flops == 6 * (body * tokens + head * targets) + 3 * pair * pairs
    assert programs["logprobs"].useful_flops * 3 == programs["accumulate"].useful_flops
    assert programs["decode"].useful_flops == 16 * (2 * (body + head) + pair * (32 + 32 / 2))


def test_a_stage_without_known_programs_is_refused() -> None:
    with pytest.raises(UserError, match="config.stage must be one of sft, grpo, .* got 'dance'"):
        list_programs(types.SimpleNamespace(stage="dance"))
    with pytest.raises(UserError, match="config.stage = 'vocabulary' has no programs"):
        list_programs(types.SimpleNamespace(stage="vocabulary"))


def supervised(preset: str) -> ConfigDict:
    """The same toy in supervised training, its rows long enough for a TPU's kernel for long rows."""
    config = get_config(preset)
    data = {"sources": {"traces": {"path": "traces.jsonl"}}, "length": 2048}
    train = {"rows_per_step": 8, "logits_chunk": 512}
    return ConfigDict(
        {key: config[key] for key in ("steps", "model", "mesh")} | dict(stage="sft", data=data, train=train)
    )


@pytest.mark.parametrize("stage", ["grpo", "sft"])
@pytest.mark.parametrize("preset", ["tiny_llama", "tiny_deepseek_v3"])
def test_every_program_lowers_for_cuda_without_a_tpu_kernel(stage: str, preset: str) -> None:
    settings = resolve_run(get_config(preset) if stage == "grpo" else supervised(preset)).settings
    with use_mesh(make_mesh(settings.mesh)):
        for program in list_programs(settings):
            with use_layout(program.layout or current_layout()):
                traced = program.function.trace(*program.arguments, **program.keywords)
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
            assert "stablehlo." in text and "tpu_custom_call" not in text, program.name


def test_resident_memory_is_what_a_program_is_not_given(programs: dict[str, Program]) -> None:
    """Arguments and what is kept beside them make the whole run's state, whichever program runs; while it samples, with
    the weights that were handed over.
    """
    count = lambda tree: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    state, _ = programs["apply"].arguments
    slots = programs["decode"].arguments[2]
    whole = count(state) + count(state.params) + count(slots)  # with the reference of the KL penalty
    for name in ("apply", "decode"):
        program = programs[name]
        given = program.arguments[0], program.arguments[2] if name == "decode" else ()
        handed = count(program.arguments[0]) if name == "decode" else 0
        left = whole + handed - count(given) - count(program.resident)
        assert left == (0 if name == "apply" else count(state.updates))


def test_weights_are_handed_over_in_the_dtype_of_computation_and_to_where_decoding_takes_them(
    programs: dict[str, Program],
) -> None:
    program, taken = programs["weights"], programs["decode"].arguments[0]
    with use_layout(program.layout):
        compiled = program.function.lower(*program.arguments).compile()
    for given, kept in zip(jax.tree.leaves(compiled.output_shardings), jax.tree.leaves(taken), strict=True):
        assert given.is_equivalent_to(kept.sharding, len(kept.shape))
    with use_layout(program.layout):
        assert shapes(jax.eval_shape(program.function, *program.arguments)) == shapes(taken)
    assert taken["stacks"][0]["mlp"]["up"]["kernel"].dtype == np.dtype("bfloat16")


def test_two_slices_need_a_data_axis_that_divides() -> None:
    @dataclasses.dataclass(frozen=True)
    class Device:
        id: int
        slice_index: int
        platform: str = "tpu"

    devices: Any = [Device(i, i // 4) for i in range(8)]
    with pytest.raises(UserError, match="config.mesh.data must be divisible by the 2 slices, got 1"):
        make_mesh(MeshConfig(data=1, fsdp=8), devices)


def test_a_pipeline_has_programs_that_stages_share_once() -> None:
    """At the paper's scale, for only shapes are made."""
    config = load_config("configs/r1_pipeline.py:size=671b")
    flags = {f"stages.{name}.mesh.expert": "4" for name in config.stages}
    settings = resolve_run(config, {**flags, "mesh.expert": "4"}).settings
    with use_mesh(make_mesh(settings.mesh)):
        names = [program.name for program in list_programs(settings)]
    updates, rolls = ["accumulate", "apply"], ["prefill", "insert", "decode", "collect"]
    sampled = [*rolls, "grow", "shrink"]  # their caches grow, those of zero do not
    rolls.append("shrink")
    expected = {
        "zero": [
            *updates,
            "logprobs",
            *rolls,
        ],  # too large for a layout of its own here; as the later reinforcements of the same model
        "cold_data": sampled,
        "cold_start": [*updates, "measure"],
        "distilled": [*(f"teacher.{name}" for name in sampled), *updates, "measure", *sampled],
        "student_zero": [*updates, "logprobs", *rolls],
    }
    assert names == [f"{stage}.{name}" for stage, programs in expected.items() for name in programs]


def test_engines_of_samplers_have_rows_that_the_mesh_divides() -> None:
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=3), jax.devices()[:6])):
        engine = make_engine_config(32, 16, slots=64)
    assert (engine.slots, engine.prefill_batch) == (66, 12)
