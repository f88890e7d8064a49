"""The closed form: bytes of parameters as the compiler would split them, memory near the compiler's, and its order."""

import dataclasses
import math

import jax
import pytest

from r1jax.aot.candidates import Candidate, Job, estimate, list_candidates
from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.models.transformer import split
from r1jax.runs.abstract_model import abstract_model
from r1jax.runs.chips import CHIPS, read_topology
from r1jax.runs.model_setup import ModelConfig

PLAIN = Candidate(1, 8, 1, 1, 1, 4, "full", False)


@pytest.fixture(scope="module")
def job() -> Job:
    return Job("tiny_llama", "grpo", rows=64, prompt=32, new=96)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_qwen3_moe", "tiny_deepseek_v3"])
@pytest.mark.parametrize("mesh", [(1, 8, 1, 1), (4, 2, 1, 1), (1, 4, 1, 2), (1, 2, 2, 2)])
def test_bytes_of_parameters_are_those_of_their_shardings(model: str, mesh: tuple[int, ...]) -> None:
    data, fsdp, expert, tensor = mesh
    job = Job(model, "sft", rows=8, prompt=0, new=16)
    with use_mesh(make_mesh(MeshConfig(data=data, fsdp=fsdp, expert=expert, tensor=tensor))):
        params = split(abstract_model(ModelConfig(preset=model, scan_layers=True)))[1]
        shards = [math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(params)]
    assert job.shard(dataclasses.replace(PLAIN, data=data, fsdp=fsdp, expert=expert, tensor=tensor)) == sum(shards)


def test_logits_are_made_in_chunks_that_divide() -> None:
    chunks = {new: Job("tiny_llama", "sft", rows=1, prompt=0, new=new).chunk for new in (96, 512, 1792, 7168, 509)}
    assert chunks == {96: 96, 512: 512, 1792: 448, 7168: 512, 509: 509}


def test_a_mesh_that_does_not_divide_is_no_candidate(job: Job) -> None:
    assert estimate(job, dataclasses.replace(PLAIN, fsdp=3), CHIPS["v5e"]) is None


# HBM bytes of the gradient's program as compiled (docs/pods.md).
COMPILED = {
    ("llama3.1_8b", "sft", "v5p:4x4x2", 128, 0, 8192, Candidate(1, 32, 1, 1, 4, 0, "full", False)): 19.8,
    ("qwen2.5_1.5b", "grpo", "v6e:4x4", 1024, 1024, 7168, Candidate(1, 16, 1, 1, 2, 16, "full", False)): 8.5,
}


@pytest.mark.parametrize(("case", "gigabytes"), COMPILED.items(), ids=lambda x: x[0] if isinstance(x, tuple) else "")
def test_memory_is_near_the_compilers(case: tuple, gigabytes: float) -> None:
    model, stage, where, rows, prompt, new, candidate = case
    found = estimate(Job(model, stage, rows=rows, prompt=prompt, new=new), candidate, read_topology(where).chip)
    assert found is not None and found.bytes / 2**30 == pytest.approx(gigabytes, rel=0.12)


def test_what_needs_more_counts_more(job: Job) -> None:
    chip = CHIPS["v5e"]
    base = estimate(job, PLAIN, chip)
    assert base is not None and set(base.seconds) == {"updating", "sampling"}
    for change in (dict(micro_batch=8), dict(remat="none"), dict(slots=64), dict(fsdp=1, data=8)):
        more = estimate(job, dataclasses.replace(PLAIN, **change), chip)
        assert more is not None and more.bytes > base.bytes, change
    less = estimate(job, dataclasses.replace(PLAIN, offload=True), chip)
    assert less is not None and less.bytes < base.bytes and less.total > base.total
    quick = estimate(job, dataclasses.replace(PLAIN, remat="none"), chip)
    assert quick is not None and quick.seconds["updating"] < base.seconds["updating"]


def test_candidates_divide_devices_and_rows(job: Job) -> None:
    found = list(list_candidates(job, 8))
    assert len(set(found)) == len(found) > 100
    assert all(c.parts * c.tensor == 8 and c.expert == 1 for c in found)
    assert all(job.rows % (c.micro_batch * c.parts) == 0 and c.slots * c.parts <= job.rows for c in found)
    assert {c.remat for c in found} == {"full", "dots", "none"} and {c.offload for c in found} == {True, False}
    experts = list_candidates(Job("tiny_qwen3_moe", "sft", rows=8, prompt=0, new=16), 8)
    assert {c.expert for c in experts} >= {1, 2, 4} and not any(c.slots for c in experts)
