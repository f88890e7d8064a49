"""Basic layers of all families: linear map, RMSNorm, embedding, output head, gated MLP.

Every weight is declared on one line with shape, logical axes and initializer (`weight`). Kernels are stored [in...,
out...], the form XLA multiplies fastest; `weights/hf.py` converts files to it. Norms are computed in float32 in any
compute dtype.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from r1jax.core.sharding import Axes, batch_parts, constrain, gather_places, join_rows, part_rows
from r1jax.models.ops.matmul import multiply, multiply_table
from r1jax.models.ops.rms_norm import normalize
from r1jax.models.ops.silu_gate import gate_gelu, gate_silu


@dataclasses.dataclass(frozen=True)
class Dtypes:
    """`param` is the storage dtype of weights, `compute` the dtype of matrix products."""

    param: str = "float32"
    compute: str = "float32"


FLOAT32 = Dtypes()
Activation = Literal["silu", "gelu"]


class Keys:
    """Random keys for the parameters of a block: those of `nnx.Rngs(params=key)`, counted by an integer.

    The counter of `nnx.Rngs` is an array, whose update costs milliseconds a key while jax traces: seconds a model.
    """

    def __init__(self, key: jax.Array):
        self._key, self._count = key, 0

    def params(self) -> jax.Array:
        """The next key."""
        key = jax.random.fold_in(self._key, jnp.uint32(self._count))
        self._count += 1
        return key


def weight(rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, dtypes: Dtypes, *, std: float | None) -> nnx.Param:
    """A parameter with logical axes: normal with `std`, zeros for std 0, ones for None."""
    dtype = jnp.dtype(dtypes.param)
    if std:
        value = (std * jax.random.normal(rngs.params(), shape, dtype)).astype(dtype)
    else:
        value = jnp.full(shape, 1 if std is None else 0, dtype)
    return nnx.Param(value, axes=axes)


class Linear(nnx.Module):
    """x[B, T, in...] -> [B, T, out...]; `kernel` is [in..., out...], `bias` [out...] or None.

    Computed as one plain matrix product: XLA:CPU copies the kernel of an einsum that contracts two axes. `a` [in...,
    r] and `b` [r, out...]: low-rank adapters beside the kernel (adapters/lora.py), or None; A B is never formed. `gate`
    [B, r]: factors of the columns of A for each row, of several adapters in one (adapters/adapter_bank.py), or None.
    """

    a: nnx.Param | None = None
    b: nnx.Param | None = None
    gate: nnx.Param | None = None
    scale: float = 1.0

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        axes: Axes,
        *,
        dtypes: Dtypes,
        rngs: nnx.Rngs,
        std: float,
        bias: bool = False,
    ):
        self.inputs, self.outputs, self.compute = inputs, outputs, dtypes.compute
        self.kernel = weight(rngs, (*inputs, *outputs), axes, dtypes, std=std)
        self.bias = weight(rngs, outputs, axes[len(inputs) :], dtypes, std=0.0) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        rows, width = x.shape[: x.ndim - len(self.inputs)], math.prod(self.inputs)
        kernel = self.kernel[...].astype(self.compute).reshape(width, math.prod(self.outputs))
        x = x.reshape(*rows, width).astype(self.compute)
        y = multiply(x, kernel, self._find_places(math.prod(rows)))
        if (adapter := self.adapter()) is not None:
            y = y + _adapt(x, *adapter, self.gate)
        y = y.reshape(*rows, *self.outputs)
        return y if self.bias is None else y + self.bias[...].astype(self.compute)

    def _find_places(self, rows: int) -> tuple[NamedSharding, NamedSharding] | None:
        """Where the kernel is gathered and kept, for a product with `rows` rows on all devices; None where partial
        products of few rows move fewer bytes than the kernel, as in decoding.
        """
        if 2 * rows < math.prod(self.inputs) * batch_parts():
            return None
        axes, shape = self.kernel.get_metadata("axes"), (*self.inputs, *self.outputs)
        return gather_places(axes[len(axes) - len(shape) :], shape, len(self.inputs))

    def adapter(self) -> tuple[jax.Array, jax.Array] | None:
        """A [in..., r] and the scaled B [r, out...] in the compute dtype; None without adapters."""
        if self.a is None or self.b is None:
            return None
        return self.a[...].astype(self.compute), (self.scale * self.b[...]).astype(self.compute)


class RMSNorm(nnx.Module):
    """x / rms(x) * (scale + offset) over the last axis, in float32 (Zhang and Sennrich 2019). offset: 0, or 1 where the
    files hold the difference from 1 (Gemma).
    """

    def __init__(self, width: int, *, epsilon: float, dtypes: Dtypes, rngs: nnx.Rngs, offset: float = 0.0):
        self.epsilon, self.compute, self.offset = epsilon, dtypes.compute, offset
        self.scale = weight(rngs, (width,), ("norm",), dtypes, std=0.0 if offset else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.scale[...].astype(jnp.float32)
        scale = scale + self.offset if self.offset else scale
        return normalize(x.astype(jnp.float32), scale, self.epsilon).astype(self.compute)


class Embedding(nnx.Module):
    """Token ids to rows of the table, times `scale`; `attend` is the tied output head, beside which adapters may stand
    (`Linear`).
    """

    a: nnx.Param | None = None
    b: nnx.Param | None = None
    gate: nnx.Param | None = None

    def __init__(self, vocab_size: int, width: int, *, dtypes: Dtypes, rngs: nnx.Rngs, std: float, scale: float = 1.0):
        self.compute, self.scale = dtypes.compute, scale
        self.embedding = weight(rngs, (vocab_size, width), ("vocab", "embed"), dtypes, std=std)

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        rows = jnp.take(self.embedding[...], tokens_BT, axis=0).astype(self.compute)
        return rows if self.scale == 1.0 else rows * jnp.asarray(self.scale, self.compute)

    def attend(self, x: jax.Array) -> jax.Array:
        """Hidden [..., D] -> float32 logits [..., V]."""
        table_VD = self.embedding[...].astype(self.compute)
        return _adapt_logits(self, x, multiply_table(x.astype(self.compute), table_VD))


class Head(nnx.Module):
    """Untied output head: hidden [..., D] -> float32 logits [..., V]; adapters may stand beside it (`Linear`)."""

    a: nnx.Param | None = None
    b: nnx.Param | None = None
    gate: nnx.Param | None = None

    def __init__(self, width: int, vocab_size: int, *, dtypes: Dtypes, rngs: nnx.Rngs, std: float):
        self.compute = dtypes.compute
        self.kernel = weight(rngs, (width, vocab_size), ("embed", "vocab"), dtypes, std=std)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel_DV = self.kernel[...].astype(self.compute)
        logits = jnp.einsum("...D,DV->...V", x.astype(self.compute), kernel_DV, preferred_element_type=jnp.float32)
        return _adapt_logits(self, x, logits)


class GatedMLP(nnx.Module):
    """down(f(gate(x)) * up(x)), f silu (SwiGLU, Shazeer 2020) or gelu in its tanh form (GeGLU).

    Shares the signature of MoE: takes the mask of valid tokens and returns router statistics, which are empty here.
    """

    def __init__(
        self, width: int, hidden: int, *, dtypes: Dtypes, rngs: nnx.Rngs, std: float, activation: Activation = "silu"
    ):
        shared: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs, std=std)
        self.activation = activation
        self.gate = Linear((width,), (hidden,), ("embed", "mlp"), **shared)
        self.up = Linear((width,), (hidden,), ("embed", "mlp"), **shared)
        self.down = Linear((hidden,), (width,), ("mlp", "embed"), **shared)

    def __call__(self, x_BTD: jax.Array, valid_BT: jax.Array | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
        x_BTD = join_rows(x_BTD)
        gate = gate_silu if self.activation == "silu" else gate_gelu
        hidden_BTF = constrain(gate(self.gate(x_BTD), self.up(x_BTD)), ("group_batch", "sequence", "mlp"))
        return part_rows(self.down(hidden_BTF)), {}


def _adapt(x: jax.Array, a: jax.Array, b: jax.Array, gate: nnx.Param | None) -> jax.Array:
    """x[B, ..., in] A B -> [B, ..., out], the columns of A multiplied by each row's gate."""
    width, rank = x.shape[-1], a.shape[-1]
    inner = multiply(x, a.reshape(width, rank))
    if gate is not None:
        inner = inner * gate[...].astype(inner.dtype).reshape(x.shape[0], *(1,) * (x.ndim - 2), rank)
    return multiply(inner, b.reshape(rank, -1))


def _adapt_logits(head: Embedding | Head, x: jax.Array, logits: jax.Array) -> jax.Array:
    """The logits with the product of the head's adapters, in float32."""
    if head.a is None or head.b is None:
        return logits
    return logits + _adapt(x.astype(jnp.float32), head.a[...], head.b[...], head.gate)
