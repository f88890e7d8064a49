"""Each kernel equals its formula here; one that is off by a little, or has a wrong gradient alone, is named."""

import jax
import pytest

from r1jax.checkup import kernels
from r1jax.models.ops import rms_norm, silu_gate


def test_every_kernel_is_right_here() -> None:
    found = kernels.check_kernels(quick=True)
    assert found.verdict == "right", found.text
    assert set(found.figures["relative_errors"]) >= {"rms_norm", "grouped_matmul", "blockwise_attention", "log_probs"}


@pytest.mark.parametrize("name", ["rms_norm", "silu_gate"])
def test_a_wrong_kernel_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = kernels.make_cases("cpu", large=False)[name]
    monkeypatch.setattr(kernels, "make_cases", lambda *_, **__: {name: chosen})
    if name == "rms_norm":
        keep = rms_norm.normalize
        monkeypatch.setattr(rms_norm, "normalize", lambda x, scale, epsilon: keep(x, scale, epsilon) * 1.001)
    else:  # right values, half of one gradient
        halve = lambda x: 0.5 * x + jax.lax.stop_gradient(0.5 * x)
        monkeypatch.setattr(kernels, "make_cases", lambda *_, **__: {
            name: chosen._replace(kernel=lambda gate, up: silu_gate.gate_silu(halve(gate), up))
        })  # fmt: skip
    found = kernels.check_kernels()
    assert found.verdict == "wrong" and name in found.text and found.cure
