"""Model families over shared layers; `load_pretrained` is the door."""

from r1jax.models.pretrained import load_pretrained as load_pretrained
