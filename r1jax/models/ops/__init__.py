"""Operations with a hand-written gradient or kernel, so that the layers above them read as mathematics.

matmul, rms_norm, silu_gate, softmax_attention
    The plain formula in the forward pass, and a hand-written backward pass (`jax.custom_vjp`). Autodiff's backward pass
    is as correct, but slow under XLA:CPU (transposed layouts, batched row sums) or large (it keeps every intermediate).
    There is no switch: every platform runs the same backward pass, so that gradients of a CPU test are those of a TPU
    run; tests compare each with autodiff of the formula.
grouped_matmul, splash
    Pallas kernels for TPUs. `grouped_matmul` selects by the platform that the program is compiled for
    (`jax.lax.platform_dependent`); its gradient is hand-written on all sides.
gpu_attention, gpu_grouped_matmul
    Triton kernels for NVIDIA GPUs.
blockwise_attention
    Attention over long rows without a stored mask; calls `splash` and `gpu_attention` where these run.
"""
