"""FLOPs of the matrix products of an optimized program: dots, and convolutions, the form that TPUs give them."""

from __future__ import annotations

import math
import re

from r1jax.aot.hlo import Computation, Instruction


def dot_flops(computation: Computation, instruction: Instruction) -> float:
    """2 x number of results x contracted sizes."""
    left = computation.operand(instruction, 0)
    summed = re.findall(r"\d+", instruction.attribute("lhs_contracting_dims"))
    return 2.0 * math.prod(instruction.shape) * math.prod(left.shape[int(d)] for d in summed) if left else 0.0


def convolution_flops(computation: Computation, instruction: Instruction) -> float:
    """2 x batch x output features x input features per group x (output position, window tap) pairs that read an
    element; padding and holes of a dilated input cost nothing.
    """
    left, right = computation.operand(instruction, 0), computation.operand(instruction, 1)
    labels = re.match(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels"))
    if left is None or right is None or labels is None:
        return 0.0
    inputs, kernel, output = (
        dict(zip(names, operand.shape, strict=True))
        for names, operand in zip(labels.groups(), (left, right, instruction), strict=True)
    )
    window = dict(re.findall(r"(\w+)=([\w\-]+)", instruction.attribute("window")))
    pairs = 1
    for axis in filter(str.isdigit, output):
        of = lambda key, default, axis=axis: window[key].split("x")[int(axis)] if key in window else default
        pairs *= count_taps(
            inputs[axis],
            output[axis],
            int(of("size", "1")),
            stride=int(of("stride", "1")),
            padding=int(of("pad", "0_0").partition("_")[0]),
            input_dilation=int(of("lhs_dilate", "1")),
            window_dilation=int(of("rhs_dilate", "1")),
        )
    return 2.0 * output["b"] * output["f"] * kernel["i"] * pairs


def count_taps(
    inputs: int, outputs: int, size: int, *, stride: int, padding: int, input_dilation: int, window_dilation: int
) -> int:
    """Number of (output position, window tap) pairs along one axis that read an element of the input.

    Position o and tap k read o * stride + k * window_dilation - padding, an element if that is a multiple of
    input_dilation inside the dilated input.
    """
    last = (inputs - 1) * input_dilation
    common = math.gcd(stride, input_dilation)
    period = input_dilation // common
    inverse = pow(stride // common, -1, period) if period > 1 else 0
    pairs = 0
    for tap in range(size):
        offset = tap * window_dilation - padding
        if offset % common:
            continue
        low, high = max(0, -(offset // stride)), min(outputs - 1, (last - offset) // stride)
        first = -(offset // common) * inverse % period if period > 1 else 0  # the residue of matching positions
        low += (first - low) % period
        pairs += max(0, (high - low) // period + 1)
    return pairs
