"""Programs of the configs for GPUs, lowered for CUDA without one: attention and experts run as kernels."""

import re

import jax
import pytest

from r1jax.aot.programs import list_programs
from r1jax.core.config import load_config
from r1jax.core.sharding import current_layout, make_mesh, use_layout, use_mesh
from r1jax.models.ops import gpu_attention
from r1jax.stages.registry import resolve_run

TRAINING = ("accumulate", "logprobs", "measure")
MOE = "model=Qwen/Qwen3-30B-A3B"


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H100 to lower for: from jax 0.11 on kernels ask which GPU it is."""
    try:
        from jax._src.pallas.triton import gpu_info
    except ImportError:
        return
    monkeypatch.setattr(gpu_info, "get_device_kind", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(gpu_info, "get_device_platform", lambda: "gpu")


def lower(config: str, monkeypatch: pytest.MonkeyPatch, *, kernels: bool) -> dict[str, tuple[str, set[str]]]:
    """Of programs that compute whole rows, StableHLO and the shapes of arrays of scores."""
    monkeypatch.setattr(gpu_attention, "runs_here", lambda: kernels)
    jax.clear_caches()
    settings = resolve_run(load_config(config)).settings
    found = {}
    with use_mesh(make_mesh(settings.mesh)):
        for program in list_programs(settings):
            if program.name in TRAINING:
                with use_layout(program.layout or current_layout()):
                    traced = program.function.trace(*program.arguments, **program.keywords)
                    text = traced.lower(lowering_platforms=("cuda",)).as_text()
                own = {tuple(leaf.shape[-2:]) for leaf in jax.tree.leaves(program.arguments)}
                found[program.name] = text, find_scores(text, own)
    return found


def find_scores(text: str, own: set[tuple[int, ...]]) -> set[str]:
    """Shapes of float32 arrays of queries x keys: of four axes or more, the last two from 512 and 2,048 on, and none of
    `own`, those of arguments.
    """
    shapes = set(re.findall(r"tensor<((?:\d+x){4,})f32>", text))
    sizes = {shape: tuple(int(size) for size in shape.rstrip("x").split("x"))[-2:] for shape in shapes}
    return {shape for shape, (q, k) in sizes.items() if q >= 512 and k >= 2048 and (q, k) not in own}


def find_kernels(text: str) -> set[str]:
    """Names of the kernels."""
    return set(re.findall(r'name = "(packed_attention\w*|grouped_matmul\w*)"', text))


@pytest.mark.parametrize("config", ["sft_8b_h100.py", "grpo_8b_h100.py"])
def test_rows_are_attended_by_kernels(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = {"packed_attention"}
    for name, (text, scores) in lower(f"configs/{config}", monkeypatch, kernels=True).items():
        backward = {"packed_attention_queries", "packed_attention_keys"} if name == "accumulate" else set()
        assert find_kernels(text) == forward | backward and not scores, name


def test_without_kernels_there_are_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, scores in lower("configs/sft_8b_h100.py", monkeypatch, kernels=False).values():
        assert scores and not find_kernels(text)


@pytest.mark.parametrize("config", ["sft_8b_h100.py", "grpo_8b_h100.py"])
def test_experts_are_multiplied_by_kernels(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = lower(f"configs/{config}:{MOE}", monkeypatch, kernels=True)
    loops = {name: text.count("stablehlo.while") for name, (text, _) in texts.items()}
    for name, (text, scores) in texts.items():
        backward = {"packed_attention_queries", "packed_attention_keys", "grouped_matmul_outer"}
        expected = {"packed_attention", "grouped_matmul"} | (backward if name == "accumulate" else set())
        assert find_kernels(text) == expected and not scores, name
    if config.startswith("sft"):
        plain = lower(f"configs/{config}:{MOE}", monkeypatch, kernels=False)
        assert all(loops[name] < text.count("stablehlo.while") for name, (text, _) in plain.items())
