"""Reading and writing of weight files; `load_pretrained` opens any MODEL."""

from r1jax.weights.pretrained import load_pretrained as load_pretrained
