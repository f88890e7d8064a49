"""Operations with a written-out gradient or a kernel of their own; the layers above them read as the mathematics.

matmul, rms_norm, silu_gate, softmax_attention
    The plain formula forward, and a backward pass written by hand (`jax.custom_vjp`). What autodiff makes of the same
    formulas is as right, but slow under XLA:CPU (transposed layouts, batched sums over rows) or large (it keeps every
    intermediate). There is no switch: one backward pass runs on every platform, so that gradients of a CPU test are
    those of a TPU run, and the tests hold each to autodiff of the formula.
grouped_matmul, splash
    Pallas kernels for TPUs. `grouped_matmul` chooses by the platform that the program is compiled for
    (`jax.lax.platform_dependent`); its gradient is written by hand on both sides.
blockwise_attention
    Attention over long rows without a stored mask, which calls `splash` where that runs.
"""
