"""r1jax: reasoning models by reinforcement learning and distillation, in JAX."""

__version__ = "0.1.0"
